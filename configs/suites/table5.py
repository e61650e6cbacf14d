"""Table 5 of the paper: what LayerScale and relative positions add to ViT-B, on ImageNet-1K and ADE20K (UPerNet).

    python tools/benchmark.py configs/suites/table5.py --dry-run
    python tools/benchmark.py configs/suites/table5.py

All three rows (paper, top-1 / mIoU): ViT 82.86 / 44.86, + LayerScale 83.00 / 45.43, + LayerScale and relative position
bias 83.22 / 45.70 (`beit_plus`, what the official code trains). 300 epochs of pre-training each.

Bring: data/imagenet, data/ade (ADEChallengeData2016), checkpoints/encoder.pkl (OpenAI's). Eight GPUs a stage. Shares
work_dirs/paper with the other tables: the first row's pre-training and classifier are Table 4's.
"""

title = 'Table 5: LayerScale and relative positions'
note = (
    'Top-1 on the 50,000 validation images of ImageNet-1K; mIoU of UPerNet on the 2,000 of ADE20K, single scale; '
    '300 epochs of pre-training on ImageNet-1K; bf16.'
)
root = 'work_dirs/paper'
gpus, amp = 8, 'bf16'


def _row(name, pretrain, classify, segment, options=None):
    """A pre-training and the two fine-tunings that start from it; options: of the classifier."""
    return [
        dict(
            name=f'pretrain-{name}',
            config=f'configs/pretrain/{pretrain}_dalle_16xb128-300e_in1k-224.py',
            options={'optim_wrapper.accumulative_counts': 2},
        ),
        dict(
            name=f'ft-{name}',
            start=f'pretrain-{name}',
            config=f'configs/classification/{classify}_ft_8xb128-100e_in1k-224.py',
            options=options or {},
        ),
        dict(
            name=f'upernet-{name}',
            start=f'pretrain-{name}',
            config=f'configs/segmentation/{segment}_upernet-pt1k_8xb2-160k_ade20k-512.py',
        ),
    ]


_layer_scale = {
    'model.backbone.variant': None,
    'model.backbone.use_abs_pos_emb': True,
    'model.backbone.use_rel_pos_bias': False,
    'model.backbone.layer_scale_init_value': 0.1,
}
stages = [
    *_row('B300', 'beit-base-p16', 'beit-base-p16', 'beit-base-p16'),
    *_row('ls-B300', 'beit-base-p16-ls', 'beit-base-p16', 'beit-base-p16-ls', _layer_scale),
    *_row('plus-B300', 'beit-plus-base-p16', 'beit-plus-base-p16', 'beit-plus-base-p16'),
]
