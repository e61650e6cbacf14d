"""Metafiles and .eval_results: means over seeds, and embedded data under no other data set's name."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from processes import call

from beit_mm.benchmark import metafiles
from beit_mm.benchmark.leaderboard import from_folder
from beit_mm.benchmark.leaderboard import rows as rows_of
from beit_mm.benchmark.records import TRAINED, Record, RecordError, make, write

MINI = 'beit-mini-p8_ft_1xb64-100_embedded-64'
BASE = 'beit-base-p16_ft_8xb128-100e_in1k-224'


def record(seed: int, value: float, **changes) -> Record:
    fields = dict(
        task='classification', dataset='EmbeddedScenes', embedded=True, split='val', num_images=1000,
        metric='accuracy/top1', value=value, metrics={'accuracy/top1': value, 'accuracy/top5': 80.0},
        protocol='fine-tune', preset='beit D96 L4', seed=seed, config=MINI, config_sha256='c' * 64,
        origin=TRAINED, recipe_sha256='e' * 64, checkpoint='a.pth', checkpoint_sha256=f'{seed}' * 64, stages=[],
        cost=dict(parameters=460908, macs=32_393_088, train_seconds=7200.0), curves={}, seconds=1.0,
    )  # fmt: skip
    return make(**{**fields, **changes})


@pytest.fixture
def folder(tmp_path) -> str:
    rows = [record(seed, value) for seed, value in enumerate([34.0, 36.0, 38.0])]
    rows.append(record(0, 83.2, dataset='ImageNet', embedded=False, num_images=50_000, config=BASE, preset='beit base'))
    segmented = dict(task='segmentation', metric='mIoU', metrics={'mIoU': 40.0, 'IoU.brick': 70.0})
    protocol = 'UPerNet, multi-scale and flip'
    rows.append(record(0, 40.0, dataset="ADE20K's layout", config='theirs', protocol=protocol, **segmented))
    rows.append(
        record(0, 2.6, task='pretrain', metric='masked_accuracy', metrics={'masked_accuracy': 2.6}, config='mim')
    )
    for row in rows:
        write(row, tmp_path / 'results')
    return str(tmp_path / 'results')


def test_metafile(folder):
    models = {model['Name']: model for model in yaml.safe_load(metafiles.metafile(from_folder(folder).rows))['Models']}
    assert set(models) == {MINI, BASE, 'theirs', 'mim'}
    (result,) = models[MINI]['Results']
    assert (result['Task'], result['Dataset'], result['Seeds']) == ('Image Classification', 'EmbeddedScenes', [0, 1, 2])
    assert result['Metrics'] == {
        'Top 1 Accuracy': 36.0, 'Top 1 Accuracy std': 2.0, 'Top 5 Accuracy': 80.0, 'Top 5 Accuracy std': 0.0,
    }  # fmt: skip
    assert 'embedded' in result['Notes']
    assert models[BASE]['Metadata']['Parameters'] == 460908
    assert models[BASE]['Metadata']['FLOPs'] == 32_393_088
    assert models[BASE]['Metadata']['Training Resources'].startswith('2.00 h on ')
    assert models[BASE]['Config'] == f'configs/classification/{BASE}.py'
    assert Path(models[BASE]['Config']).is_file()
    (result,) = models[BASE]['Results']
    assert (result['Dataset'], result['Metrics']['Top 1 Accuracy']) == ('ImageNet-1k', 83.2)
    assert 'Notes' not in result
    (result,) = models['theirs']['Results']
    assert result['Dataset'] == 'EmbeddedScenes (theirs)'  # whatever the config called it
    assert result['Metrics'] == {'mIoU(ms+flip)': 40.0}  # and no class of it
    assert 'Config' not in models['theirs']


def test_eval_results(folder, tmp_path):
    written = metafiles.write_eval_results(from_folder(folder).rows, str(tmp_path / 'hub'), 'https://example.org/logs')
    entries = {path: parse_eval_result_entries(yaml.safe_load(path.read_text())) for path in written}
    assert len(entries) == 5  # one per checkpoint; pre-training has no benchmark there
    assert len({path.parent for path in written}) == 5
    for path, (entry,) in entries.items():
        assert path.parent.name == '.eval_results'
        assert entry.source_url == 'https://example.org/logs'
        if BASE in str(path):
            assert (entry.dataset_id, entry.task_id) == ('ILSVRC/imagenet-1k', 'image_classification')
            assert (entry.value, 'embedded' in entry.notes) == (83.2, False)
        else:
            assert entry.dataset_id == 'EmbeddedScenes (theirs)' if 'theirs' in str(path) else 'EmbeddedScenes'
            assert entry.notes.startswith('embedded data')
            assert not any(name in path.read_text() for name in ('ADE20K', 'imagenet', 'ImageNet'))


def test_the_last_evaluation_counts(folder):
    later = dataclasses.replace(record(0, 44.0), date='2099-01-01T00:00:00+00:00')
    write(later, folder)
    models = {model['Name']: model for model in yaml.safe_load(metafiles.metafile(from_folder(folder).rows))['Models']}
    assert models[MINI]['Results'][0]['Metrics']['Top 1 Accuracy'] == pytest.approx((44 + 36 + 38) / 3, abs=0.01)


def test_several_data_sets_of_one_checkpoint(tmp_path):
    same = dict(checkpoint_sha256='a' * 64)
    rows = rows_of([
        record(0, 50.0, **same),
        record(0, 60.0, dataset='EmbeddedScenes in colour', **same),
        record(0, 70.0, num_images=100, **same),
        record(0, 80.0, split='test', **same),
    ])  # fmt: skip
    (model,) = yaml.safe_load(metafiles.metafile(rows))['Models']
    assert {(r['Dataset'], r['Split'], r['Images'], r['Metrics']['Top 1 Accuracy']) for r in model['Results']} == {
        ('EmbeddedScenes', 'val', 1000, 50.0), ('EmbeddedScenes in colour', 'val', 1000, 60.0),
        ('EmbeddedScenes', 'val', 100, 70.0), ('EmbeddedScenes', 'test', 1000, 80.0),
    }  # fmt: skip
    written = metafiles.write_eval_results(rows, str(tmp_path))
    assert {path.name: yaml.safe_load(path.read_text())[0]['value'] for path in written} == {
        'embeddedscenes_val-1000_fine-tune.yaml': 50.0,
        'embeddedscenes-in-colour_val-1000_fine-tune.yaml': 60.0,
        'embeddedscenes_val-100_fine-tune.yaml': 70.0,
        'embeddedscenes_test-1000_fine-tune.yaml': 80.0,
    }


def test_two_results_are_never_one_file(tmp_path):
    rows = rows_of([record(0, 50.0), record(0, 60.0, recipe_sha256='b' * 64)])
    (model,) = yaml.safe_load(metafiles.metafile(rows))['Models']
    assert {result['Recipe'] for result in model['Results']} == {'e' * 8, 'b' * 8}
    with pytest.raises(RecordError, match=r'embeddedscenes_val-1000_fine-tune\.yaml: two results .* dataset_name'):
        metafiles.write_eval_results(rows, str(tmp_path / 'hub'))
    assert not (tmp_path / 'hub').exists()


@pytest.mark.parametrize(
    ('called', 'name'),
    [
        ('EmbeddedScenes as files', 'EmbeddedScenes as files'),
        ('EmbeddedDigits', 'EmbeddedDigits'),
        ('EmbeddedScenes as ImageNet', 'EmbeddedScenes (beit-mini-p8_ft)'),
        ('digits of CIFAR10', 'EmbeddedDigits (beit-mini-p8_ft)'),
        ('ImageNet', 'EmbeddedScenes (beit-mini-p8_ft)'),
    ],
)
def test_names_of_embedded_data(called, name):
    for names in (metafiles.HUB, metafiles.OPENMMLAB):
        assert metafiles.dataset_of(record(0, 1.0, dataset=called), names) == name


def test_what_was_left_out_is_told(folder, tmp_path):
    broken = Path(folder) / 'broken.json'
    broken.write_text('{"task": ')
    out = tmp_path / 'new' / 'm.yml'
    code, said, told = call('tools/publish.py', '--metafile', folder, '--out', out)
    assert (code, said) == (0, f'{out}\n')
    assert f'left out: {broken}' in told
    assert out.read_text() == metafiles.metafile(from_folder(folder).rows)
    code, said, told = call('tools/publish.py', '--hf', folder, '--out', tmp_path / 'hub')
    assert (code, len(said.splitlines())) == (0, 5)
    assert f'left out: {broken}' in told
    code, said, told = call('tools/publish.py', '--metafile', folder, '--out', tmp_path)
    assert (code, said) == (1, '')
    assert f'--out {tmp_path}: is a folder' in told


def test_no_records(tmp_path):
    with pytest.raises(RecordError, match='--record DIR'):
        from_folder(tmp_path)
