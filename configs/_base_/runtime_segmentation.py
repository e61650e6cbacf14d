"""As runtime.py, for segmentation on ADE20K: a checkpoint and an evaluation every 16,000 steps.

Norms are synchronised over ranks where there are several on CUDA, and plain BatchNorm elsewhere.
"""

default_scope = 'mmseg'
custom_imports = dict(imports=['beit_mm', 'beit_mm.models', 'beit_mm.data', 'beit_mm.engine'])
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=16000, by_epoch=False, max_keep_ckpts=2, save_last=True),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
env_cfg = dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
log_processor = dict(type='beit_mm.LogProcessor', by_epoch=False, window_size=20)
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends)
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
resume = False
sync_bn = 'torch'
tta_model = dict(type='beit_mm.SegTTAModel')
