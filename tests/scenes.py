"""Stock configs of mmpretrain and mmseg on embedded scenes, small enough for a test."""

from mmengine.config import Config


def on_scenes(config: Config) -> dict:
    """Overrides for another project's recipe: its model made small, its optimizer, schedule and hooks, our images."""
    segments = config.default_scope == 'mmseg'
    pack = 'mmseg.PackSegInputs' if segments else 'mmpretrain.PackInputs'
    loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
    options = {'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=2, val_interval=2)}
    for split in ('train', 'val'):
        scenes = dict(type='beit_mm.EmbeddedScenes', split=split, length=8, size=32, pipeline=[dict(type=pack)])
        loader_options = dict(loader, dataset=dict(scenes, _delete_=True))
        options.update({f'{split}_dataloader.{key}': value for key, value in loader_options.items()})
    options.update({
        'default_hooks.checkpoint.by_epoch': False,
        'default_hooks.checkpoint.interval': 2,
        'default_hooks.logger.interval': 1,
        'visualizer.vis_backends': [{'type': 'LocalVisBackend'}],
        'log_processor': dict(by_epoch=False),
        'model.backbone.img_size': (32, 32),
    })  # fmt: skip
    if segments:
        options.update({'model.pretrained': None, 'optim_wrapper.paramwise_cfg.num_layers': 4})
        options.update({'model.data_preprocessor.size': (32, 32), 'model.neck.embed_dim': 24})
        options.update({'model.test_cfg.crop_size': (32, 32), 'model.test_cfg.stride': (21, 21)})
        small = dict(embed_dims=24, num_layers=4, num_heads=2, out_indices=(0, 1, 2, 3))
        options.update({f'model.backbone.{key}': value for key, value in small.items()})
        for head, width in dict(decode_head=[24] * 4, auxiliary_head=24).items():
            small = {'in_channels': width, 'channels': 8, 'num_classes': 12}
            options.update({f'model.{head}.{key}': value for key, value in small.items()})
    else:
        arch = dict(embed_dims=24, num_layers=3, num_heads=2, feedforward_channels=48)
        options.update({'model.backbone.arch': dict(arch, _delete_=True), 'model.head.in_channels': 24})
        options['model.backbone.init_cfg'] = None
    return options
