"""benchmark/estimate.py: the cost of a suite before it runs, against the paper's sizes and by hand."""

import math

import pytest
from test_suite import PAPER
from tiny_suite import tiny_suite

from beit_mm.benchmark.estimate import amount, batch_note, duration, estimate, images_seen, sizes_of
from beit_mm.benchmark.jobs import describe
from beit_mm.benchmark.suite import merged, plan

PIXELS = 'configs/pretrain/beit-base-p16_pixels_16xb128-300e_in1k-224.py'
PROBE = 'configs/classification/beit-base-p16_linear-probe-block9_8xb128-50e_in1k-224.py'
KNN = 'configs/classification/beit-base-p16_knn_1xb128-0e_in1k-224.py'
GMACS = 17.56e9  # of BEiT-B at 224 px


@pytest.fixture
def stages(tmp_path):
    path = tmp_path / 'suite.py'
    path.write_text(
        f"title = note = 'x'\nroot = {str(tmp_path / 'r')!r}\ngpus = 8\nstages = [\n"
        f"dict(name='pixels', config={PIXELS!r}, options={{'optim_wrapper.accumulative_counts': 2}}),\n"
        f"dict(name='probe', config={PROBE!r}, start='pixels'),\n"
        f"dict(name='knn', config={KNN!r}, checkpoint='{{pixels}}'),\n"
        f"dict(name='small', config={PIXELS!r}),\n]\n"
    )
    return {stage.name: stage for stage in plan(path)}


def test_numbers(stages):
    pixels = estimate(stages['pixels'])
    steps = 1_281_167 // 1024  # the last images of an epoch are left out
    assert pixels.images == 300 * steps * 1024
    head = 75 * 768 * 768  # a linear layer on the masked patches
    assert pixels.flops == pytest.approx(2 * 3 * (GMACS + head) * pixels.images, rel=1e-3)
    parameters = sum(p * 12 for p in (86_570_752,))  # about: float32 and two moments
    assert pixels.disk == pytest.approx(2 * parameters, rel=0.02)
    assert (pixels.length, pixels.seconds) == ('300 epochs', None)

    probe = estimate(stages['probe'], tflops=50)
    blocks = 17.56e9 * 9 / 12
    assert probe.flops == pytest.approx(2 * GMACS * probe.images, rel=0.01)  # all blocks are run, none learns
    assert probe.flops > 2 * blocks * probe.images
    assert probe.seconds == pytest.approx(probe.flops / (50e12 * 8))

    knn = estimate(stages['knn'])
    assert (knn.length, knn.images, knn.disk) == ('test only', 50_000, 0)


def test_a_wrong_batch_is_said(stages):
    assert batch_note(stages['pixels']) == ''
    assert batch_note(stages['small']).startswith('small: 8 x 128 x 1 images a step (devices, batch, accumulated), and')


def test_images(tmp_path):
    tokenizer, pretrain, *_ = plan(tiny_suite(tmp_path, steps=24))
    assert images_seen(merged(tokenizer)) == 24 * 4
    assert images_seen(merged(pretrain), gpus=2) == 24 * 4 * 2
    assert sizes_of(merged(pretrain)).frozen > 0  # the tokenizer


def test_measured_time_is_better_than_a_guess(tmp_path, monkeypatch):
    from beit_mm.benchmark import estimate as module

    first, *_ = plan(tiny_suite(tmp_path))
    monkeypatch.setattr(module, 'finished', lambda stage: dict(seconds=90.0))
    assert estimate(first, tflops=1, others=(first, first)).seconds == 90.0


def test_words():
    assert [amount(x) for x in (None, 1.64e20, 9.04e23, 3.4e10)] == ['?', '164 EFLOPs', '904 ZFLOPs', '34 GFLOPs']
    assert [duration(x) for x in (None, 59, 7200, 30 * 86400)] == ['-', '59 s', '2.0 h', '30.0 d']


def test_a_dry_run_needs_no_data(tmp_path):
    said = describe('configs/suites/table3.py', root=tmp_path / 'r', costs=True, tflops=100)
    lines = said.splitlines()
    assert len(lines) > 8
    assert lines[1].split()[:3] == ['missing', '0', 'pretrain-B800']
    assert '7 runs, 7 to do: 191 EFLOPs' in said
    assert 'checkpoints/encoder.pkl (for pretrain-B800)' in said
    assert math.isclose(float(lines[1].split(' EFLOPs')[0].split()[-1]), 164, abs_tol=1)
    assert not (tmp_path / 'r').exists()  # nothing is written


@pytest.mark.slow
@pytest.mark.parametrize('name', PAPER)
def test_every_suite_of_the_paper_dry_runs(name, tmp_path):
    said = describe(f'configs/suites/{name}.py', root=tmp_path / 'r', costs=True)
    assert f'{PAPER[name][0]} runs, {PAPER[name][0]} to do: ' in said
    assert '?' not in said.split(' runs, ')[0]
