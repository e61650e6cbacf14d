"""Schedules that are foreseen, against the optimizer of a run."""

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from tiny import CLASSIFY, tiny

from beit_mm.benchmark.analysis import AnalysisError, schedule
from beit_mm.engine.configs import load_config
from beit_mm.engine.launch import run

SEEN: list[dict] = []
BY_EPOCH = {
    'train_cfg': dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=3, val_interval=10),
    'train_dataloader.sampler': dict(type='DefaultSampler', shuffle=True),
    'default_hooks.checkpoint.by_epoch': True,
    'param_scheduler': [
        dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=1, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=True, begin=1),
        dict(type='CosineAnnealingParamScheduler', param_name='weight_decay', eta_min_ratio=8, by_epoch=False),
    ],
}


@HOOKS.register_module(force=True)
class NoteRatesHook(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        names = {id(parameter): name for name, parameter in runner.model.named_parameters()}
        SEEN.append({
            names[id(parameter)]: (group['lr'], group['weight_decay'], group['betas'][0])
            for group in runner.optim_wrapper.optimizer.param_groups
            for parameter in group['params']
        })  # fmt: skip


@pytest.mark.parametrize('options', [{'train_cfg.max_iters': 9, 'train_cfg.val_interval': 100}, BY_EPOCH])
def test_as_the_run_does(tmp_path, no_pretty_printing, options):
    SEEN.clear()
    config = tiny(CLASSIFY, **options)
    found = schedule.follow(config)
    config.custom_hooks = [dict(type='NoteRatesHook')]
    run(config, work_dir=str(tmp_path), no_validate=True)
    assert found.total == len(SEEN) == 9
    assert found.steps.tolist() == list(range(9))
    assert found.epoch_length == (3 if options is BY_EPOCH else None)
    assert sorted(name for group in found.groups for name in group.names) == sorted(SEEN[0])
    for column, quantity in enumerate(schedule.QUANTITIES):
        for i, group in enumerate(found.groups):
            for name in group.names:
                wanted = [seen[name][column] for seen in SEEN]
                assert found.values[quantity][:, i] == pytest.approx(wanted, rel=1e-12), (quantity, name)
    assert len({group.layer for group in found.groups}) == 4  # stem, two blocks, head
    head = [i for i, group in enumerate(found.groups) if 'head.fc.weight' in group.names]
    assert found.peak[head] == pytest.approx(max(seen['head.fc.weight'][0] for seen in SEEN))


def test_the_papers_rates_without_data():
    """Table 13: peak 4e-3, 20 epochs of warmup, decay 0.65 over 14 layers; 1,281,167 images in batches of 1024."""
    config = load_config('configs/classification/beit-base-p16_ft_8xb128-100e_in1k-224.py')
    with pytest.raises(AnalysisError, match='--images 1281167'):
        schedule.follow(config)
    assert schedule.ranks_of(config) == 8
    assert schedule.epoch_length(config, 1281167, 8) == 1251
    config.merge_from_dict({'train_cfg.max_epochs': 2, 'param_scheduler': [config.param_scheduler[0]]})
    config.param_scheduler[0].end = 1
    found = schedule.follow(config, images=50_000)
    assert (found.total, found.epoch_length) == (96, 48)
    (head,) = (i for i, group in enumerate(found.groups) if 'head.fc.weight' in group.names)
    assert found.peak[head] == pytest.approx(4e-3)
    stem = next(i for i, group in enumerate(found.groups) if 'backbone.cls_token' in group.names)
    assert found.peak[stem] == pytest.approx(4e-3 * 0.65**13)
    assert not found.values['weight decay'][:, stem].any()


def test_what_cannot_be_foreseen():
    plateau = dict(type='ReduceOnPlateauLR', monitor='loss', by_epoch=True)
    with pytest.raises(AnalysisError, match='ReduceOnPlateauLR'):
        schedule.follow(tiny(CLASSIFY, **{'param_scheduler': [plateau]}), images=100)
    config = tiny(CLASSIFY)
    config.optim_wrapper = None
    with pytest.raises(AnalysisError, match='nothing is trained'):
        schedule.follow(config)
