"""What an evaluation leaves: records of every kind of model, with what they cost and what they came from."""

import json
from pathlib import Path

import pytest
import torch
from test_configs import tiny

from beit_mm.apis import build_model
from beit_mm.benchmark.cost import cost_of
from beit_mm.benchmark.evaluation import MOST_POINTS, curves_of, forward_cost, record_of
from beit_mm.benchmark.leaderboard import rows
from beit_mm.benchmark.records import CONVERTED, TRAINED
from beit_mm.checkpoints.load import sha256
from beit_mm.engine.configs import load_config
from beit_mm.engine.launch import evaluate, run

PRETRAIN = Path('configs/pretrain/beit-mini-p8_dvae_1xb48-1500_mosaics-64.py')
TUNE = Path('configs/classification/beit-mini-p8_ft_1xb64-100_mosaics-64.py')
KINDS = {
    'tokenizer': 'configs/tokenizer/dvae-512_1xb64-300_mosaics-32.py',
    'pixels': 'configs/pretrain/beit-mini-p8_pixels_1xb48-1500_embedded-64.py',
    'segmentation': 'configs/segmentation/beit-mini-p8_setr-pup-scratch_1xb32-60_mosaics-64.py',
}


def options_of(path: Path, folder: Path, **changes) -> dict:
    return {**tiny(path, folder), 'test_dataloader.dataset.length': 8, 'test_dataloader.batch_size': 4, **changes}


def evaluated(path: Path, options: dict, checkpoint: Path, work_dir: Path):
    config = load_config(path, options)
    runner, metrics, seconds = evaluate(config, str(checkpoint), work_dir=str(work_dir / 'test'))
    return record_of(runner, config, str(checkpoint), metrics, seconds), runner


def test_a_road_leaves_its_lineage(tmp_path, no_pretty_printing):
    """Two seeds of a pre-training and a fine-tuning: one row, although they lie in other folders."""
    records = []
    for seed in (0, 1):
        work = tmp_path / str(seed)
        before = options_of(PRETRAIN, tmp_path, **{'model.target.checkpoint': None})
        run(load_config(PRETRAIN, before), work_dir=str(work / 'a'), seed=seed)
        options = options_of(TUNE, tmp_path)
        run(load_config(TUNE, options), work_dir=str(work / 'b'), load_from=str(work / 'a/iter_2.pth'), seed=seed)
        record, runner = evaluated(TUNE, options, work / 'b/iter_2.pth', work)
        records.append(record)
        assert (record.origin, record.seed, record.num_images, record.embedded) == (TRAINED, seed, 8, True)
        assert record.checkpoint_sha256 == sha256(work / 'b/iter_2.pth')
        (stage,) = record.stages
        assert (stage['config'], stage['sha256'], stage['seed']) == (PRETRAIN.stem, sha256(work / 'a/iter_2.pth'), seed)
        assert 0 < stage['train_seconds'] < 60
        assert record.cost['macs'] == cost_of(runner.model.backbone, torch.zeros(1, 3, 64, 64)).macs + 96 * 12
        assert record.cost['parameters'] == sum(p.numel() for p in runner.model.parameters())
        assert record.cost['input'] == [3, 64, 64]
        assert record.cost['images_per_second'] == pytest.approx(8 / record.seconds, rel=0.3)
        assert record.curves['accuracy/top1'][0] == [2]
    (row,) = rows(records)
    assert row.values == {0: records[0].value, 1: records[1].value}
    assert row.start == 'beit-mini-p8_dvae'
    assert row.road_seconds == pytest.approx(
        sum(r.cost['train_seconds'] + r.stages[0]['train_seconds'] for r in records) / 2
    )


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_model_is_counted(kind, tmp_path, no_pretty_printing):
    path = Path(KINDS[kind])
    config = load_config(path, options_of(path, tmp_path))
    model = build_model(config)
    channels = 1 if kind == 'pixels' else 3
    side = 32 if kind == 'tokenizer' else 64
    images = torch.zeros(1, channels, side, side)
    parameters, macs = forward_cost(model, (channels, side, side))
    assert parameters == sum(p.numel() for p in model.parameters())
    part = {
        'tokenizer': lambda: cost_of(model, forward=lambda: model.tokens(images)),
        'pixels': lambda: cost_of(model.backbone, images),
        'segmentation': lambda: cost_of(model, forward=lambda: model.encode_decode(images, [dict(img_shape=(64, 64))])),
    }[kind]()
    assert macs == part.macs > 0


def test_converted_weights_are_called_so(tmp_path, no_pretty_printing):
    options = options_of(TUNE, tmp_path)
    run(load_config(TUNE, options), work_dir=str(tmp_path), seed=5)
    content = torch.load(tmp_path / 'iter_2.pth')
    torch.save(dict(state_dict=content['state_dict']), tmp_path / 'bare.pth')
    record, _ = evaluated(TUNE, options, tmp_path / 'bare.pth', tmp_path)
    assert (record.origin, record.seed, record.cost['train_seconds']) == (CONVERTED, None, None)


def test_curves_are_thinned_and_end_with_the_checkpoint(tmp_path):
    folder = tmp_path / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    lines = [dict(loss=1 / step, iter=step, step=step, lr=0.1) for step in range(1, 1001)]
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    found = curves_of(str(tmp_path / 'iter_950.pth'), 950)
    assert set(found) == {'loss'}
    steps, values = found['loss']
    assert len(steps) <= MOST_POINTS + 1
    assert (steps[0], steps[-1]) == (1, 950)
    assert values == [1 / step for step in steps]
    assert curves_of(str(tmp_path / 'iter_950.pth'), None)['loss'][0][-1] == 1000
