"""engine/changes.py: what has changed since a checkpoint was written is named, and what becomes of it is true."""

import json
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from test_finite import CLASSIFY, EMA, ranks, train

from beit_mm.checkpoints.load import write
from beit_mm.engine.changes import differences, order, said, settings_of


def test_a40_settings_hold_what_trains():
    config = Config(
        dict(
            work_dir='/somewhere',
            resume=True,
            launcher='pytorch',
            log_level='INFO',
            val_dataloader=dict(batch_size=3),
            randomness=dict(seed=1),
            train_dataloader=dict(batch_size=2, num_workers=4, dataset=dict(type='A', data_root='/data', size=(3, 4))),
            optim_wrapper=dict(type=torch.optim.SGD, optimizer=dict(type='AdamW', betas=(0.9, 0.98))),
            custom_hooks=[dict(type='beit_mm.ProgressHook'), dict(type='EMAHook', momentum=0.1), dict(type='Other')],
        )
    )
    assert settings_of(config) == dict(
        train_dataloader=dict(batch_size=2, dataset=dict(type='A', size=[3, 4])),
        optim_wrapper=dict(type=str(torch.optim.SGD), optimizer=dict(type='AdamW', betas=[0.9, 0.98])),
        custom_hooks=dict(EMAHook=dict(momentum=0.1), Other={}),
        ranks=1,
    )


def test_differences():
    then = dict(a=1, b=dict(type='X', c=[1, 2]), pipeline=[dict(type='P', p=1), dict(type='Q')], gone=5)
    now = dict(a=2, b=dict(type='X', c=[1, 3]), pipeline=[dict(type='P', p=2), dict(type='Q')], new=dict(x=1))
    assert list(differences(then, now)) == [
        ('a', 1, 2),
        ('b.c', [1, 2], [1, 3]),
        ('pipeline.0.p', 1, 2),
        ('gone', 5, None),
        ('new', None, dict(x=1)),
    ]
    assert list(differences(then, json.loads(json.dumps(then)))) == []
    wrapper = dict(type='A', optimizer=dict(lr=1)), dict(type='B', optimizer=dict(lr=2))
    assert [path for path, _, _ in differences(*wrapper, 'optim_wrapper')] == [
        'optim_wrapper.type',
        'optim_wrapper.optimizer.lr',
    ]
    (other,) = differences(dict(m=dict(type='X', c=1)), dict(m=dict(type='Y', d=1)))
    assert other == ('m', dict(type='X', c=1), dict(type='Y', d=1))


def test_order_of_epochs_and_iterations():
    assert list(order(5, 2)) == [False, False, False, True, False, False, True]
    assert list(order(2, 0)) == [False, False]
    assert list(order(0, 2)) == [True, True]


# From outside


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """The folder of a run that was killed at step 7, after its checkpoint of step 4."""
    folder = tmp_path_factory.mktemp('run')
    assert train(folder, CLASSIFY, EMA, dict(type='SignalAt', step=7, signal='SIGKILL'))[0] == -9
    return folder


def resumed(written, folder, *settings, hooks=(EMA,)):
    """(exit code, lines of the warning about settings, stderr, {step: checkpoint}) of a run that goes on from there."""
    file = written / 'run/iter_4.pth'
    wishes = ['--resume', file, *(['--cfg-options', *settings] if settings else [])]
    code, out, err, saved = train(folder, CLASSIFY, *hooks, wishes=wishes)
    _, _, rest = out.partition('was written with other settings than this config has:\n')
    lines = [line.strip() for line in rest.splitlines()]
    upto = next((i for i, line in enumerate(lines) if ' - mmengine - ' in line), 0)
    return code, [line for line in lines[:upto] if not line.startswith('custom_hooks.SignalAt')], err, saved


def rates(checkpoint):
    return [group['lr'] for group in checkpoint['optimizer']['param_groups']]


@pytest.mark.slow
def test_a40_changed_lr_is_named_and_applied(written, tmp_path):
    """The schedule from there on is the one of a run with the new rate, to the bit."""
    changes = ['optim_wrapper.optimizer.lr=0.0003', 'param_scheduler.1.eta_min_ratio=0.1', 'param_scheduler.0.end=6']
    changes += ['param_scheduler.1.begin=6', 'optim_wrapper.optimizer.weight_decay=0.2']
    code, lines, _, saved = resumed(written, tmp_path / 'a', *changes)
    assert code == 0
    assert lines == [
        'optim_wrapper.optimizer.lr: 0.002, now 0.0003: applied from here on, at the same place in the schedule',
        'optim_wrapper.optimizer.weight_decay: 0.05, now 0.2: applied from here on, at the same place in the schedule',
        'param_scheduler.0.end: 10, now 6: the new schedule is applied, at the place of the old one',
        'param_scheduler.1.begin: 10, now 6: the new schedule is applied, at the place of the old one',
        'param_scheduler.1.eta_min_ratio: 0.01, now 0.1: the new schedule is applied, at the place of the old one',
    ]
    fresh = train(tmp_path / 'b', CLASSIFY, EMA, wishes=['--cfg-options', *changes])[3]
    for step in (8, 12):
        assert rates(saved[step]) == rates(fresh[step])
        assert saved[step]['param_schedulers'] == fresh[step]['param_schedulers']
        assert max(group['weight_decay'] for group in saved[step]['optimizer']['param_groups']) == 0.2
    assert not torch.equal(saved[12]['state_dict']['head.fc.weight'], fresh[12]['state_dict']['head.fc.weight'])


@pytest.mark.slow
def test_a40_batch_size_and_ema_are_named(written, tmp_path):
    changes = ['train_dataloader.batch_size=5', 'model.backbone.drop_path_rate=0.1']
    code, lines, _, saved = resumed(written, tmp_path, *changes, hooks=[dict(EMA, momentum=0.5)])
    assert (code, max(saved)) == (0, 12)
    assert lines == [
        'train_dataloader.batch_size: 10, now 5: the data go on at the same image; a step is of another size, the lr '
        'is not scaled',
        'model.backbone.drop_path_rate: 0.0, now 0.1: the config holds from here on',
        'custom_hooks.EMAHook.momentum: 0.25, now 0.5: the config holds from here on',
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            "optim_wrapper.optimizer={'type': 'SGD', 'lr': 0.1, '_delete_': True}",
            'was written with the optimizer AdamW, this config has SGD, which cannot go on with what the other one has',
        ),
        (
            'optim_wrapper.paramwise_cfg.layer_decay_rate=1.0',
            'was written with 8 groups of 34 parameters, this config makes 2 of 34 (optim_wrapper.constructor',
        ),
    ],
)
def test_a40_another_optimizer_is_refused(written, tmp_path, change, message):
    code, _, err, saved = resumed(written, tmp_path, change)
    assert (code, saved) == (1, {})
    assert message in err
    assert '--load-from' in err
    assert len(err.strip().splitlines()) <= 4


@pytest.mark.slow
def test_a40_nothing_is_said_where_nothing_has_changed(written, tmp_path):
    """Nor of a checkpoint from before there were settings in them; whatever the workers and places."""
    code, lines, _, _ = resumed(written, tmp_path / 'a', 'train_dataloader.num_workers=1')
    assert (code, lines) == (0, [])
    file = written / 'run/iter_4.pth'
    content = torch.load(file, weights_only=True)
    del content['meta']['beit_mm']['settings']
    (tmp_path / 'old/run').mkdir(parents=True)
    write(content, tmp_path / 'old/run/iter_4.pth')
    code, lines, _, _ = resumed(tmp_path / 'old', tmp_path / 'b', 'optim_wrapper.optimizer.lr=0.1')
    assert (code, lines) == (0, [])


@pytest.mark.slow
def test_a40_more_ranks_and_another_precision_are_named(written, tmp_path):
    """Both go on; rank 0 alone says it."""
    wishes = ['--resume', written / 'run/iter_4.pth', '--amp', 'bf16']
    ended, out, saved = ranks(tmp_path, CLASSIFY, EMA, wishes=wishes)
    assert [code for code, _ in ended] == [0, 0]
    assert max(saved) == 12
    lines = [line.strip() for line in out.partition('than this config has:\n')[2].splitlines()[:3]]
    assert lines[:2] == [
        'ranks: 1, now 2: the data go on at the same image; a step is of another size, the lr is not scaled',
        'optim_wrapper.type: beit_mm.OptimWrapper, now beit_mm.AmpOptimWrapper: the config holds from here on',
    ]


@pytest.mark.slow
def test_a40_a_schedule_taken_away(written, tmp_path):
    """The rate is the config's, whatever the schedule had made of it."""
    code, lines, _, saved = resumed(written, tmp_path, 'param_scheduler=[]', 'optim_wrapper.optimizer.lr=0.001')
    assert (code, saved[12].get('param_schedulers')) == (0, [])
    assert lines == [
        'optim_wrapper.optimizer.lr: 0.002, now 0.001: applied from here on, at the same place in the schedule',
        "param_scheduler: ['LinearLR', 'CosineAnnealingLR'], now []: the new schedule is applied, at the place of the "
        'old one',
    ]
    expected = [0.001 * 0.75**depth for depth in (0, 0, 1, 1, 2, 2, 3, 3)]
    assert sorted(rates(saved[12]), reverse=True) == pytest.approx(expected, rel=1e-12)


def test_a40_at_most_ten_lines():
    found = [(f'model.a{i}', i, None) for i in range(12)] + [('ranks', 1, 2), ('optim_wrapper.optimizer.lr', 1, 2)]
    lines = said(found, False, SimpleNamespace(_load_from='iter_1.pth'))
    assert len(lines) == 12
    assert lines[1] == (
        'optim_wrapper.optimizer.lr: 1, now 2: NOT applied: this schedule cannot be replayed, so the saved one goes on'
    )
    assert lines[2].startswith('ranks: 1, now 2: ')
    assert lines[3] == 'model.a0: 0, now not set: the config holds from here on'
    assert lines[-1] == 'and 4 more: model.a8, model.a9, model.a10, model.a11'
