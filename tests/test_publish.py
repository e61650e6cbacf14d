"""Published checkpoints: the same metric in a third of the bytes, under a name that their content has to earn."""

import json
from pathlib import Path

import pytest
import torch
from processes import call
from safetensors import safe_open
from tiny import CLASSIFY, saved, tiny

from beit_mm.apis import init_model
from beit_mm.benchmark import publish
from beit_mm.checkpoints.load import CheckpointError, read, sha256, write
from beit_mm.engine.launch import evaluate, run

CLASSES = tuple('abcdefghijkl')


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """A training checkpoint of two steps, with averaged weights."""
    work_dir = tmp_path_factory.mktemp('run')
    short = {'train_cfg.max_iters': 2, 'train_cfg.val_interval': 9, 'default_hooks.checkpoint.interval': 2}
    config = tiny(CLASSIFY, **short)
    config.custom_hooks = [dict(type='EMAHook', momentum=0.5)]
    runner = run(config, work_dir=str(work_dir), no_validate=True, seed=3)
    averages = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook').ema_model.module.state_dict()
    torch.save(averages, work_dir / 'averages.pt')
    return work_dir / 'iter_2.pth'


@pytest.mark.parametrize('safetensors', [False, True])
def test_tests_as_the_checkpoint_does(trained, tmp_path, no_pretty_printing, safetensors):
    path, said = publish.publish(str(trained), str(tmp_path), safetensors=safetensors)
    suffix = '.safetensors' if safetensors else '.pth'
    assert path.name == f'{Path(CLASSIFY).stem}-{sha256(path)[:8]}{suffix}'
    assert publish.publish(str(trained), str(tmp_path), safetensors=safetensors)[0] == path  # the same bytes again
    assert path.stat().st_size < trained.stat().st_size / 2.5
    assert any('EMA' in line for line in said)
    content, before = read(path), read(trained)
    assert set(content) == {'meta', 'state_dict'}
    averages = torch.load(trained.parent / 'averages.pt')
    assert set(content['state_dict']) == set(averages)
    for key, value in averages.items():
        assert torch.equal(content['state_dict'][key], value), key
    for key in ('cfg', 'seed', 'iter'):
        assert content['meta'][key] == before['meta'][key]
    assert content['meta']['beit_mm'] == json.loads(json.dumps(before['meta']['beit_mm'])) or not safetensors
    assert content['meta']['beit_mm']['preprocessing'] == dict(mean=[127.5], std=[50.0], pooling='mean')
    results = [evaluate(tiny(CLASSIFY), str(file), work_dir=str(tmp_path / 'w'))[1] for file in (trained, path)]
    assert {k: v for k, v in results[0].items() if 'time' not in k} == {
        k: v for k, v in results[1].items() if 'time' not in k
    }
    assert publish.verify(str(path)).endswith(sha256(path))


def test_class_names_stay(tmp_path):
    source = saved(tiny(CLASSIFY), tmp_path / 'a.pth', dataset_meta=dict(classes=CLASSES))
    for safetensors in (False, True):
        path, said = publish.publish(source, safetensors=safetensors, name='model')
        assert init_model(tiny(CLASSIFY), str(path)).dataset_meta['classes'] == CLASSES
        assert any('does not say' in line and 'the config' in line for line in said)
    with safe_open(path, 'pt') as file:
        assert json.loads(file.metadata()['beit_mm'])['dataset_meta']['classes'] == list(CLASSES)


def test_other_projects_averages(tmp_path):
    write(dict(model={'w': torch.zeros(2)}, model_ema={'w': torch.ones(2)}, optimizer={'s': 1}), tmp_path / 'a.pth')
    path, said = publish.publish(str(tmp_path / 'a.pth'))
    assert read(path)['state_dict']['w'].tolist() == [1.0, 1.0]
    assert said[:2] == ["the averaged weights of 'model_ema' are published", 'left out: model, optimizer']


def refused(source, *parts):
    with pytest.raises(CheckpointError) as error:
        publish.publish(str(source))
    for part in parts:
        assert part in str(error.value)
    assert not list(Path(source).parent.glob('*-????????.*'))


def test_what_is_not_published(tmp_path):
    whole = tmp_path / 'a.pth'
    write(dict(state_dict={'head.w': torch.tensor([1.0, float('nan')])}), whole)
    refused(whole, 'head.w (1 of 2)')
    write(dict(state_dict={'w': torch.arange(4000.0)}), whole)
    half = tmp_path / 'half.pth'
    half.write_bytes(whole.read_bytes()[:8000])
    refused(half, 'half.pth', 'damaged')
    manifest = tmp_path / 'SHA256SUMS'
    manifest.write_text(f'{sha256(half)}  a.pth\n')
    refused(whole, 'SHA256SUMS', sha256(half))
    manifest.write_text(f'{sha256(whole)}  a.pth\n{"0" * 64}  other.pth\n')
    assert 'its sha256 is that of SHA256SUMS' in publish.publish(str(whole))[1]


@pytest.mark.parametrize('name', ['./a.pth', '*a.pth', '*./a.pth', '{}/a.pth', 'moved/a.pth'])
def test_manifests_as_sha256sum_writes_them(tmp_path, name):
    whole = tmp_path / 'a.pth'
    write(dict(state_dict={'w': torch.arange(40.0)}), whole)
    manifest, line = tmp_path / 'SHA256SUMS', name.format(tmp_path)
    manifest.write_text(f'{"0" * 64} {line}\n')
    refused(whole, 'SHA256SUMS', '0' * 64)
    manifest.write_text(f'{"0" * 64}  other/b.pth\n{sha256(whole)} {line}\n')
    assert 'its sha256 is that of SHA256SUMS' in publish.publish(str(whole))[1]


def test_manifests_of_several_folders(tmp_path):
    whole = tmp_path / 'a.pth'
    write(dict(state_dict={'w': torch.arange(40.0)}), whole)
    (tmp_path / 'SHA256SUMS').write_text(f'{"0" * 64}  other/a.pth\n{sha256(whole)}  ./a.pth\n')
    assert publish.check_manifest(whole) == 'SHA256SUMS'
    (tmp_path / 'SHA256SUMS').write_text(f'{sha256(whole)}  other/a.pth\n{"0" * 64}  ./a.pth\n')
    refused(whole, 'SHA256SUMS', '0' * 64)


def test_out_that_cannot_be_written(tmp_path):
    write(dict(state_dict={'w': torch.arange(40.0)}), tmp_path / 'a.pth')
    (tmp_path / 'README.md').write_text('mine')
    with pytest.raises(PermissionError, match=r'README\.md cannot be written \(File exists\): .* by --out'):
        publish.publish(str(tmp_path / 'a.pth'), str(tmp_path / 'README.md'))
    with pytest.raises(PermissionError, match=r'README\.md cannot be written .* by --out'):
        publish.check_out_file(tmp_path / 'README.md' / 'm.yml')


def test_verify_tells_changed_files(tmp_path):
    write(dict(state_dict={'w': torch.arange(4000.0)}), tmp_path / 'a.pth')
    path, _ = publish.publish(str(tmp_path / 'a.pth'))
    damaged = bytearray(path.read_bytes())
    damaged[5000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match='changed, or cut off'):
        publish.verify(str(path))
    with pytest.raises(CheckpointError, match='does not end in'):
        publish.verify(str(tmp_path / 'a.pth'))


def test_verify_looks_at_all_files(tmp_path):
    write(dict(state_dict={'w': torch.arange(40.0)}), tmp_path / 'a.pth')
    path, _ = publish.publish(str(tmp_path / 'a.pth'))
    bad = [tmp_path / 'none-00000000.pth', tmp_path / 'a.pth']
    code, said, told = call('tools/publish.py', '--verify', bad[0], path, bad[1])
    assert (code, said) == (1, f'{publish.verify(str(path))}\n')
    for line in (f'{bad[0]}: there is no such file', f'{bad[1]}: its name does not end in', 'error: 2 of 3 files'):
        assert line in told
    assert call('tools/publish.py', '--verify', path)[0] == 0
