"""engine/finite.py and skipping.py: steps on NaN are skipped without a trace, and what only skips is stopped."""

import contextlib
import copy
import socket

import injected  # noqa: F401  (its hooks, for a run in this process)
import pytest
import torch
from faults import config_file
from mmengine.optim import OptimWrapper as MMEngineOptimWrapper
from processes import call, door_started
from test_hooks import TINY, TOKENIZER
from tiny import CLASSIFY, PRETRAIN, SEGMENT
from torch import nn

from beit_mm.checkpoints.load import read
from beit_mm.engine.accumulation import OptimWrapper
from beit_mm.engine.amp import Fp16OptimWrapper, with_finite_steps
from beit_mm.engine.configs import load_config
from beit_mm.engine.finite import FiniteSteps, not_finite
from beit_mm.engine.launch import run

NAN, INF = float('nan'), float('inf')


class Net(nn.Module):
    """A linear layer, a norm with running statistics, and a counter; `loss` is that of a batch (B, 3)."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
        self.register_buffer('calls', torch.zeros((), dtype=torch.int64))

    def loss(self, batch):
        self.calls += 1
        return self.norm(self.linear(batch)).tanh().square().sum()


def stepped(batches, accumulate=1, wrapper=OptimWrapper, change=None, **options):
    """(model, optim wrapper, what was skipped) after training on batches; `change` is made to each loss."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    optim_wrapper = wrapper(optimizer=optimizer, accumulative_counts=accumulate, **copy.deepcopy(options))
    optim_wrapper.initialize_count_status(model, 0, len(batches))
    skipped = []
    for batch in batches:
        with optim_wrapper.optim_context(model):
            loss = model.loss(batch)
        optim_wrapper.update_params(change(loss, batch) if change else loss)
        skipped.append(optim_wrapper.pop_skipped() if isinstance(optim_wrapper, FiniteSteps) else None)
    return model, optim_wrapper, skipped


def random_batches(number=6):
    return list(torch.randn(number, 4, 3, generator=torch.Generator().manual_seed(1)))


def assert_same(one, other):
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


FP16_HERE = dict(wrapper=Fp16OptimWrapper, devices=['cpu'], loss_scale=8.0)
CLIPS = [{}, dict(clip_grad=dict(max_norm=0.1)), dict(clip_grad=dict(type='value', clip_value=0.01))]


@pytest.mark.parametrize('options', [*CLIPS, FP16_HERE])
def test_a22_a_nan_batch_leaves_no_trace(options):
    """Weights, moments, running statistics and counters are those of a training without that batch, to the bit."""
    batches = random_batches()
    bad = [*batches[:2], batches[2] * NAN, *batches[3:]]
    model, optim_wrapper, skipped = stepped(bad, **options)
    reference, other, none = stepped(batches[:2] + batches[3:], **options)
    assert_same(model, reference)
    assert [each is not None for each in skipped] == [False, False, True, False, False, False]
    assert none == [None] * 5
    assert model.calls == 5
    assert model.norm.num_batches_tracked == 5
    state, expected = optim_wrapper.state_dict()['state'], other.state_dict()['state']
    assert all(torch.equal(state[i][key], expected[i][key]) for i in state for key in ('exp_avg', 'exp_avg_sq', 'step'))


def test_finite_steps_are_those_of_mmengine():
    """With and without clipping, to the bit."""
    for options in CLIPS:
        ours, theirs = (stepped(random_batches(), wrapper=w, **options)[0] for w in WRAPPERS)
        assert_same(ours, theirs)


WRAPPERS = (OptimWrapper, MMEngineOptimWrapper)


@pytest.mark.parametrize('bad', [2, 3])
def test_a22_one_bad_part_drops_the_accumulated_step(bad):
    batches = random_batches()
    model, _, skipped = stepped([b * (NAN if i == bad else 1) for i, b in enumerate(batches)], accumulate=2)
    assert_same(model, stepped(batches[:2] + batches[4:], accumulate=2)[0])
    assert [each and each.parts for each in skipped] == [None, None, None, 2, None, None]


def test_loss_and_gradients_are_looked_at_each():
    """An infinite loss with a finite gradient; a finite loss whose gradient is not."""

    def infinite(loss, batch):
        return loss + INF

    def steep(loss, batch):
        return loss + (batch.sum() * 0 + loss.detach() * 0 + (loss - loss.detach())).clamp_min(0).sqrt()

    model, _, skipped = stepped(random_batches(1), change=infinite)
    assert (skipped[0].loss, skipped[0].norm > 0) == (True, True)
    assert_same(model, stepped([])[0])
    model, _, skipped = stepped(random_batches(1), change=steep)
    assert (skipped[0].loss, not_finite(dict(norm=torch.tensor(skipped[0].norm)))) == (False, ['norm'])
    assert_same(model, stepped([])[0])


def test_a24_the_scale_comes_down_for_gradients_not_for_losses():
    options = dict(devices=['cpu'], loss_scale=dict(init_scale=2.0**127, growth_interval=3))
    batches = random_batches(5)
    torch.manual_seed(0)
    model = Net()
    optim_wrapper = Fp16OptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **options)
    scales, kinds = [], []
    for i, batch in enumerate([batches[0], batches[1] * NAN, *batches[2:]]):
        with optim_wrapper.optim_context(model):
            loss = model.loss(batch)
        optim_wrapper.update_params(loss * (1e3 if i == 0 else 1))
        skipped = optim_wrapper.pop_skipped()
        kinds.append(skipped and (skipped.loss, skipped.scale))
        scales.append(optim_wrapper.loss_scaler.get_scale())
        if i == 1:
            optim_wrapper.loss_scaler.update(2.0**10)
    assert kinds == [(False, 2.0**126), (True, None), None, None, None]
    assert scales == [2.0**126, 2.0**126, 2.0**10, 2.0**10, 2.0**11]
    assert not_finite(model.state_dict()) == []


SGD = dict(type='SGD', lr=0.1)


@pytest.mark.parametrize(
    ('stock', 'ours'),
    [
        (dict(type='OptimWrapper', optimizer=SGD), dict(type='beit_mm.OptimWrapper', optimizer=SGD)),
        (dict(optimizer=SGD, clip_grad=None), dict(type='beit_mm.OptimWrapper', optimizer=SGD, clip_grad=None)),
        (dict(type=MMEngineOptimWrapper, optimizer=SGD), dict(type='beit_mm.OptimWrapper', optimizer=SGD)),
        (
            dict(type='AmpOptimWrapper', loss_scale=512.0, optimizer=SGD),
            dict(type='beit_mm.Fp16OptimWrapper', loss_scale=512.0, optimizer=SGD),
        ),
        (
            dict(type='mmengine.AmpOptimWrapper', dtype='bfloat16', loss_scale='dynamic', optimizer=SGD),
            dict(type='beit_mm.AmpOptimWrapper', optimizer=SGD),
        ),
        (
            dict(constructor='Several', one=dict(type='OptimWrapper', optimizer=SGD)),
            dict(constructor='Several', one=dict(type='beit_mm.OptimWrapper', optimizer=SGD)),
        ),
        (dict(type='ApexOptimWrapper', optimizer=SGD), dict(type='ApexOptimWrapper', optimizer=SGD)),
    ],
)
def test_stock_wrappers_become_ours(stock, ours):
    assert with_finite_steps(stock) == ours


# From outside

PLAIN = {  # no randomness but the order of the images
    CLASSIFY: {'train_dataloader.dataset.pipeline.0.prob': 0.0, 'model.backbone.drop_path_rate': 0.0},
    SEGMENT: {
        'train_dataloader.dataset.pipeline.0.prob': 0.0,
        'model.backbone.drop_path_rate': 0.0,
        'model.decode_head.dropout_ratio': 0.0,
        'model.auxiliary_head.dropout_ratio': 0.0,
    },
    PRETRAIN: {},
}


def train(folder, kind, *hooks, wishes=(), steps=12, every=4, **options):
    """(exit code, stdout, stderr, {step: checkpoint}) of a tiny training; its log has a line a step."""
    settings = {
        'train_cfg.max_iters': steps,
        'default_hooks.checkpoint.interval': every,
        'default_hooks.checkpoint.max_keep_ckpts': -1,
        'default_hooks.logger.interval': 1,
        **PLAIN[kind],
        **options,
    }
    config = config_file(folder, kind, *hooks, **settings)
    code, out, err = call('tools/train.py', config, '--work-dir', folder / 'run', '--no-validate', *wishes)
    saved = {int(path.stem[5:]): read(path, map_location='cpu') for path in (folder / 'run').glob('iter_*.pth')}
    return code, out, err, saved


def assert_same_run(one, other):
    """Weights, averages, optimizer and schedules of two checkpoints are the same."""
    for key in ('state_dict', 'ema_state_dict'):
        for name, value in one.get(key, {}).items():
            assert torch.equal(value, other[key][name]), name
    assert one['param_schedulers'] == other['param_schedulers']
    assert one['optimizer']['param_groups'] == other['optimizer']['param_groups']
    for i, state in one['optimizer']['state'].items():
        assert all(torch.equal(value, other['optimizer']['state'][i][key]) for key, value in state.items())


def all_finite(checkpoint):
    return not_finite(checkpoint['state_dict']) == []


EMA = dict(type='EMAHook', momentum=0.25)


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'accumulate'), [(CLASSIFY, 1), (SEGMENT, 1), (PRETRAIN, 1), (CLASSIFY, 3)])
def test_a22_nan_batch(tmp_path, kind, accumulate):
    """Exactly the run without that step: schedule, EMA and norms do not advance; the log's means do not see it."""
    options = {} if accumulate == 1 else {'optim_wrapper.accumulative_counts': accumulate}
    first, last = (6, 6) if accumulate == 1 else (4, 6)
    reference = dict(type='Undone', first=first, last=last)
    code, out, err, saved = train(
        tmp_path / 'a', kind, EMA, dict(type='BadBatch', steps=[5 if last > first else 6]), **options
    )
    assert (code, 'error' in err) == (0, False)
    expected = train(tmp_path / 'b', kind, EMA, reference, **options)[3]
    for step in (8 if accumulate == 1 else 9, 12):  # the next after it that the optimizer has taken
        assert all_finite(saved[step])
        assert_same_run(saved[step], expected[step])
    warnings = [line.split('WARNING - ')[1] for line in out.splitlines() if 'WARNING' in line and 'skipped' in line]
    assert warnings[0].startswith('step 6 skipped (1 in a row): its loss is not finite (loss nan')
    assert '; images embedded://scenes/' in warnings[0]
    assert warnings[-1].startswith('1 step skipped for a loss or gradients that were not finite; ')
    assert len(warnings) == 2
    assert 'loss: nan' not in out
    (line,) = (tmp_path / 'a/run/skipped_steps.txt').read_text().splitlines()
    assert line.startswith('6\t')
    assert line.count('embedded://') == 10


@pytest.mark.slow
@pytest.mark.parametrize('kind', [CLASSIFY, SEGMENT, PRETRAIN])
def test_a23_divergence(tmp_path, kind):
    """A learning rate of 1e6: ends with an error within 10 steps of the first one that is not finite."""
    code, out, err, saved = train(tmp_path, kind, steps=32, wishes=['--cfg-options', 'optim_wrapper.optimizer.lr=1e6'])
    lines = err.strip().splitlines()
    assert code == 1
    assert lines[0] == 'error: training has diverged: 10 steps in a row, from step 3 on, were skipped'
    assert lines[1].startswith('  step 12: the norm of its gradients is nan (loss')
    assert lines[2].startswith('  10 steps skipped for a loss or gradients that were not finite; newest checkpoint, of')
    assert 'a lower optim_wrapper.optimizer.lr' in err
    assert lines[2].endswith('iter_8.pth, written while steps were skipped')
    assert len(lines) == 7
    assert 'Traceback' not in out + err
    assert sorted(saved) == [4, 8]
    assert all(map(all_finite, saved.values()))


@pytest.mark.slow
def test_a23_nan_weights_end_it_at_once(tmp_path):
    """Weights that become infinite, and a loss that is NaN from then on."""
    wishes = ['--cfg-options', 'optim_wrapper.optimizer.lr=1e39', 'param_scheduler=[]']
    code, _, err, saved = train(tmp_path, CLASSIFY, steps=32, wishes=wishes)
    assert code == 1
    assert err.strip().splitlines()[0].startswith('error: training has diverged: weights are not finite any more: ')
    assert 'step 2: its loss is not finite (loss nan)' in err
    assert saved == {}


FP16 = {'optim_wrapper.type': 'beit_mm.Fp16OptimWrapper'}
ON_CPU = ['--cfg-options', "optim_wrapper.devices=['cpu']"]


@pytest.mark.slow
def test_a07_resume_with_the_scaler(tmp_path):
    """Scale, its growth and everything else go on to the bit."""
    wishes = [*ON_CPU, "optim_wrapper.loss_scale={'init_scale': 4194304.0, 'growth_interval': 5}"]
    whole = train(tmp_path / 'a', CLASSIFY, EMA, wishes=wishes, **FP16)
    scaler = {step: content['optimizer']['loss_scaler'] for step, content in whole[3].items()}
    assert whole[0] == 0
    assert len({state['scale'] for state in scaler.values()}) > 1
    killed = dict(type='SignalAt', step=7, signal='SIGKILL')
    assert train(tmp_path / 'b', CLASSIFY, EMA, killed, wishes=wishes, **FP16)[0] == -9
    code, out, _, resumed = train(tmp_path / 'b', CLASSIFY, EMA, wishes=[*wishes, '--resume', 'auto'], **FP16)
    assert (code, 'resumed epoch: 0, iter: 4' in out) == (0, True)
    assert_same_run(resumed[12], whole[3][12])
    assert resumed[12]['optimizer']['loss_scaler'] == scaler[12]


@pytest.mark.slow
@pytest.mark.parametrize(('scale', 'last'), [('1e30', 1e30), ("{'init_scale': 1e30}", 1e30 / 2**32)])
def test_a24_steps_that_only_overflow(tmp_path, scale, last):
    """32 in a row: said from the first on, and an error at the end; the schedule has not moved."""
    wishes = [*ON_CPU, f'optim_wrapper.loss_scale={scale}']
    code, out, err, saved = train(tmp_path, CLASSIFY, wishes=wishes, steps=40, every=16, **FP16)
    warnings = [line.split('WARNING - ')[1] for line in out.splitlines() if 'WARNING' in line and 'skipped' in line]
    lines = err.strip().splitlines()
    assert code == 1
    assert lines[0] == (
        'error: training has diverged: 32 steps in a row, from step 1 on, were skipped, whatever the loss scale'
    )
    assert lines[1] == f'  step 32: gradients overflow, the loss scale is now {last:g}'
    assert "optim_wrapper.loss_scale='dynamic'" in lines[3]
    assert [line.split()[1] for line in warnings] == ['1', '2', '3', '10', '20', '30']
    assert [scheduler['_global_step'] for scheduler in saved[16]['param_schedulers']] == [0, 0]


@pytest.mark.slow
def test_a24_a_scale_below_one(tmp_path):
    """Gradients that overflow whatever the scale: an error when it is below 1, not after 32 steps."""
    wishes = [*ON_CPU, "optim_wrapper.loss_scale={'init_scale': 8.0}"]
    code, _, err, _ = train(tmp_path, CLASSIFY, dict(type='BadGradients', first=3), wishes=wishes, **FP16)
    assert code == 1
    assert '4 steps in a row, from step 3 on, were skipped, whatever the loss scale' in err
    assert 'step 6: gradients overflow, the loss scale is now 0.5' in err


def ranks(folder, kind, *hooks, wishes=(), **options):
    """[(exit code, stderr)] of two gloo ranks, and rank 0's {step: checkpoint}."""
    settings = {'train_cfg.max_iters': 12, 'default_hooks.checkpoint.interval': 4, **PLAIN[kind], **options}
    config = config_file(folder, kind, *hooks, **settings)
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        port = listener.getsockname()[1]
    place = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    args = ('tools/train.py', config, '--work-dir', folder / 'run', '--no-validate', '--launcher', 'pytorch', *wishes)
    with contextlib.ExitStack() as stack:
        doors = [stack.enter_context(door_started(*args, RANK=str(i), LOCAL_RANK=str(i), **place)) for i in range(2)]
        ended = [(door.wait(120), door.stderr()) for door in doors]
        out = doors[0].stdout()
    saved = {int(path.stem[5:]): read(path, map_location='cpu') for path in (folder / 'run').glob('iter_*.pth')}
    return ended, out, saved


@pytest.mark.slow
def test_a22_nan_on_one_rank_skips_on_both(tmp_path):
    """The weights of both ranks are those of a run that undoes the step; rank 0 says whose batch it was."""
    digest = dict(type='Digest')
    ended, out, saved = ranks(tmp_path / 'a', SEGMENT, digest, dict(type='BadBatch', steps=[6], rank=1))
    expected = ranks(tmp_path / 'b', SEGMENT, digest, dict(type='Undone', first=6))[2]
    assert [code for code, _ in ended] == [0, 0]
    assert_same_run(saved[12], expected[12])
    first, second = ((tmp_path / 'a/run' / f'digest_{rank}.txt').read_text() for rank in range(2))
    assert first == second
    assert len(first.split()) == 12
    (warning,) = [line for line in out.splitlines() if 'step 6 skipped' in line]
    assert 'its loss is not finite on rank 1 (loss nan' in warning
    listed = (tmp_path / 'a/run/skipped_steps.txt').read_text()
    assert listed.count('embedded://') == 10


@pytest.mark.slow
def test_a23_divergence_ends_both_ranks(tmp_path):
    ended, _, saved = ranks(tmp_path, CLASSIFY, wishes=['--cfg-options', 'optim_wrapper.optimizer.lr=1e6'])
    assert [code for code, _ in ended] == [1, 1]
    assert 'training has diverged: 10 steps in a row, from step 3 on, were skipped' in ended[0][1]
    assert 'error: rank 1: training has diverged, as rank 0 says' in ended[1][1]
    assert all(map(all_finite, saved.values()))


@pytest.mark.slow
def test_a_foreign_optim_wrapper_is_looked_at_after_its_step(tmp_path):
    """It steps on NaN; that ends the run before anything of it is saved."""
    wishes = ['--cfg-options', 'optim_wrapper.type=Foreign']
    code, _, err, saved = train(tmp_path, CLASSIFY, dict(type='BadBatch', steps=[6]), wishes=wishes)
    assert code == 1
    assert 'training has diverged: weights are not finite any more: backbone.' in err
    assert sorted(saved) == [4]


@pytest.mark.slow
def test_a22_a_tokenizer_counts_and_revives_nothing(tmp_path):
    """DiscreteVAE's temperature and codes, which buffers count: as if the step had not been."""
    config = load_config(TOKENIZER, {**TINY, 'default_hooks.logger.interval': 1})
    dead = dict(type='beit_mm.DeadCodesHook', interval=1, threshold=0.9)
    config.custom_hooks = [*config.custom_hooks, EMA, dead, dict(type='BadBatch', steps=[3])]
    runner = run(config, work_dir=str(tmp_path), seed=0)
    assert runner.model.num_updates == 3
    assert not_finite(runner.model.state_dict()) == []
    saved = read(tmp_path / 'iter_4.pth', map_location='cpu')
    assert all_finite(saved)
    assert saved['ema_state_dict']['steps'] == 3
