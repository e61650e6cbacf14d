"""What every run shares: hooks, logs, seeds."""

default_scope = 'mmpretrain'
custom_imports = dict(imports=['beit_mm', 'beit_mm.models', 'beit_mm.data', 'beit_mm.engine'])
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=200, by_epoch=False, max_keep_ckpts=2, save_last=True),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
log_processor = dict(type='beit_mm.LogProcessor', by_epoch=False, window_size=20)
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends)
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
resume = False
