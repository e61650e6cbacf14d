"""Metafiles and .eval_results: means over seeds, and embedded data under no other data set's name."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from beit_mm.benchmark import metafiles
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
    models = {model['Name']: model for model in yaml.safe_load(metafiles.metafile(folder))['Models']}
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
    assert result['Dataset'] == 'EmbeddedScenes'  # whatever the config called it
    assert result['Metrics'] == {'mIoU(ms+flip)': 40.0}  # and no class of it
    assert 'Config' not in models['theirs']


def test_eval_results(folder, tmp_path):
    written = metafiles.write_eval_results(folder, str(tmp_path / 'hub'), 'https://example.org/logs')
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
            assert entry.dataset_id == 'EmbeddedScenes'
            assert entry.notes.startswith('embedded data')
            assert not any(name in path.read_text() for name in ('ADE20K', 'imagenet', 'ImageNet'))


def test_the_last_evaluation_counts(folder):
    later = dataclasses.replace(record(0, 44.0), date='2099-01-01T00:00:00+00:00')
    write(later, folder)
    models = {model['Name']: model for model in yaml.safe_load(metafiles.metafile(folder))['Models']}
    assert models[MINI]['Results'][0]['Metrics']['Top 1 Accuracy'] == pytest.approx((44 + 36 + 38) / 3, abs=0.01)


def test_no_records(tmp_path):
    with pytest.raises(RecordError, match='--record DIR'):
        metafiles.metafile(str(tmp_path))
