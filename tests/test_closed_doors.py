"""No door runs code that is in a file of data: A27 to A29 from outside, through the tools."""

import json

import pytest
import torch
from faults import config_file
from payload import WITH_SWITCH, by_pickle, by_torch
from processes import call
from test_closed import evil
from test_tools import assert_mistake
from tiny import CLASSIFY, PRETRAIN, tiny

SHORT = {
    'train_cfg.max_iters': 2,
    'train_dataloader.dataset.length': 20,
    'train_dataloader.num_workers': 0,
    'train_dataloader.persistent_workers': False,
}
STOCK = """_base_ = ['{config}']
model = dict(_delete_=True, type='ImageClassifier', backbone=dict(type='mmpretrain.VisionTransformer', img_size=64,
    patch_size=8, arch=dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48), {backbone}),
    head=dict(type='LinearClsHead', num_classes=8, in_channels=24), {model})
"""


def pretrained(path) -> str:
    return f"init_cfg=dict(type='Pretrained', checkpoint='{path}')"


@pytest.fixture(scope='module')
def classify(tmp_path_factory) -> str:
    return config_file(tmp_path_factory.mktemp('config'), CLASSIFY, **SHORT)


def commands(tmp_path, classify: str, bad):
    """(name, command) of every door by which a checkpoint comes in."""
    work_dir = ['--work-dir', tmp_path / 'w']
    (tmp_path / 'auto').mkdir()
    by_torch(tmp_path / 'auto' / 'iter_5.pth', tmp_path / 'ran')
    (tmp_path / 'auto' / 'last_checkpoint').write_text(str(tmp_path / 'auto' / 'iter_5.pth'))
    leaves = {
        'load_from': f"_base_ = ['{classify}']\nload_from = '{bad}'\n",
        'backbone': f"_base_ = ['{classify}']\nmodel = dict(backbone=dict({pretrained(bad)}))\n",
        'stock backbone': STOCK.format(config=classify, backbone=pretrained(bad), model=''),
        'stock model': STOCK.format(config=classify, backbone='', model=pretrained(bad)),
    }
    for name, text in leaves.items():
        leaf = tmp_path / f'{name}.py'
        leaf.write_text(text)
        yield name, ['tools/train.py', leaf, *work_dir]
    yield '--load-from', ['tools/train.py', classify, '--load-from', bad, *work_dir]
    yield '--resume FILE', ['tools/train.py', classify, '--resume', bad, *work_dir]
    yield '--resume auto', ['tools/train.py', classify, '--resume', '--work-dir', tmp_path / 'auto']
    tokenizer = config_file(tmp_path, PRETRAIN, **{'model.target.checkpoint': str(bad)})
    yield 'tokenizer', ['tools/train.py', tokenizer, *work_dir]
    yield 'tokens', ['tools/prepare_data.py', 'tokens', tokenizer, '--views', 2, '--out', tmp_path / 'cache']
    yield 'test', ['tools/test.py', classify, bad, *work_dir]
    yield 'predict', ['tools/test.py', classify, bad, '--images', tmp_path, '--out', tmp_path / 'p.json']
    yield 'convert', ['tools/convert_checkpoint.py', bad, tmp_path / 'out.pth', '--to', 'unilm']
    yield 'publish', ['tools/publish.py', bad, '--out', tmp_path / 'published']
    yield 'export', ['tools/export.py', classify, bad, '--out', tmp_path / 'model.pt2']
    yield 'visualize', ['tools/visualize.py', 'attention', classify, bad, '--out', tmp_path / 'a.png']
    yield 'confusion', ['tools/analyze.py', 'confusion', classify, bad, *work_dir]
    yield 'per-class', ['tools/analyze.py', 'per-class', classify, bad, *work_dir]


@pytest.mark.slow
@pytest.mark.parametrize('switch', [{}, WITH_SWITCH], ids=['default', 'switch'])
def test_a27_no_door_runs_a_checkpoint(tmp_path, classify, switch):
    marker = tmp_path / 'ran'
    bad = by_torch(tmp_path / 'bad.pth', marker)
    for name, command in commands(tmp_path, classify, bad):
        if not switch and name not in ('load_from', '--resume FILE', 'backbone', 'stock model', 'tokenizer'):
            continue
        code, out, err = call(*command, **switch)
        assert not marker.exists(), name
        if name != '--resume auto':  # which passes it over
            assert_mistake((code, out, err), 'bad.pth: holds Python objects besides tensors (', '--trust-checkpoint')


@pytest.mark.slow
def test_a28_resuming_executes_no_text(tmp_path, classify):
    """Whatever hooks a config has, and from the newest checkpoint as from a named one."""
    marker, work_dir = tmp_path / 'ran', tmp_path / 'w'
    options = ['--work-dir', work_dir, '--cfg-options', 'default_hooks.checkpoint.interval=1']
    assert call('tools/train.py', classify, *options)[0] == 0
    path = work_dir / 'iter_2.pth'
    content = torch.load(path, weights_only=True)  # what we write, torch's own strict reader takes as it is
    assert 'config' not in content['meta'] or content['meta']['config'] != evil(marker)
    content['meta']['config'] = evil(marker)
    bad = tmp_path / 'iter_2.pth'
    torch.save(content, bad)
    hook = config_file(tmp_path / 'hook', CLASSIFY, dict(type='PutsTextBack', text=evil(marker)), **SHORT)
    for config in (classify, hook):
        command = ['tools/train.py', config, '--work-dir', tmp_path / 'again', '--resume', bad]
        code, out, err = call(*command, '--cfg-options', 'train_cfg.max_iters=3')
        assert (code, marker.exists()) == (0, False), err
        assert 'resumed epoch: 0, iter: 2' in out + err


ANNOTATED = """_base_ = ['{config}']
train_dataloader = dict(dataset=dict(_delete_=True, type='MultiLabelDataset', ann_file='{file}',
    pipeline=[]))
"""


@pytest.mark.slow
def test_a29_annotations_and_configs_of_data_run_nothing(tmp_path, classify):
    marker = tmp_path / 'ran'
    by_pickle(tmp_path / 'ann.pkl', marker)
    tag = f"!!python/object/apply:os.system ['touch {marker}']"
    (tmp_path / 'ann.yaml').write_text(f'metainfo: {{}}\ndata_list: {tag}\n')
    for name, said in (('ann.pkl', 'a pickle, and reading one runs whatever'), ('ann.yaml', 'line 2: could not')):
        leaf = tmp_path / 'leaf.py'
        leaf.write_text(ANNOTATED.format(config=classify, file=tmp_path / name))
        assert_mistake(call('tools/train.py', leaf, '--work-dir', tmp_path / 'w'), str(tmp_path / name), said)
    (tmp_path / 'config.yaml').write_text(f'work_dir: x\nmodel: {tag}\n')
    (tmp_path / 'types.json').write_text(json.dumps(dict(model=dict(type='os.system', command=f'touch {marker}'))))
    for name, said in (
        ('config.yaml', 'line 2: could not'),
        ('types.json', "model.type='os.system' is not registered"),
    ):
        for command in (['tools/train.py', '--work-dir', tmp_path / 'w'], ['tools/print_config.py']):
            assert_mistake(call(command[0], tmp_path / name, *command[1:]), str(tmp_path / name), said)
    assert not marker.exists()


@pytest.mark.slow
def test_a29_a_yaml_config_of_ours_trains(tmp_path):
    tiny(CLASSIFY, **SHORT).dump(tmp_path / 'run.yaml')
    code, _, err = call('tools/train.py', tmp_path / 'run.yaml', '--work-dir', tmp_path / 'w')
    assert code == 0, err
    assert (tmp_path / 'w' / 'iter_2.pth').is_file()


@pytest.mark.slow
def test_trust_is_of_one_file(tmp_path, classify):
    """Of that of --load-from, and not of the tokenizer's; and what it means is said before it is read."""
    marker = tmp_path / 'ran'
    bad, trusted = by_torch(tmp_path / 'tokenizer.pth', marker), by_torch(tmp_path / 'old.pth', tmp_path / 'trusted')
    config = config_file(tmp_path, PRETRAIN, **{'model.target.checkpoint': str(bad)})
    command = ['tools/train.py', config, '--load-from', trusted, '--trust-checkpoint', '--work-dir', tmp_path / 'w']
    code, out, err = call(*command)
    assert code == 1
    assert 'tokenizer.pth: holds Python objects besides tensors' in err
    assert f'{trusted}: trusted, as you asked. Reading it runs whatever code it holds, with your rights' in out + err
    assert not marker.exists()
