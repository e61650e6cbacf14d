"""Table 11 of the paper: CIFAR-100 at 224 px, by what ViT-B was pre-trained on.

    python tools/benchmark.py configs/suites/table11.py --dry-run
    python tools/benchmark.py configs/suites/table11.py --skip-missing

Rows run here (paper): DeiT 90.8, DINO 91.7, MoCo v3 87.1, BEiT 90.1, BEiT + intermediate fine-tuning on ImageNet-1K
91.8, all in BEiT's recipe; ours besides: the same from random weights, at 224 px. Rows of the paper alone: ViT384
from scratch (48.5) and supervised (87.1).

Bring: data/imagenet, data/cifar (the original pickles); checkpoints/encoder.pkl (OpenAI's),
deit_base_patch16_224-b5f2ef4d.pth, dino_vitbase16_pretrain.pth and vit-b-300ep.pth.tar (MoCo v3) in checkpoints/
(docs/checkpoints.md). Eight GPUs a stage. Shares work_dirs/paper with the other tables.
"""

title = 'Table 11: CIFAR-100'
note = 'Top-1 on the 10,000 test images of CIFAR-100 at 224 px, with the recipe of Table 13, bf16.'
root = 'work_dirs/paper'
gpus, amp = 8, 'bf16'


def _vit(name, file):
    """Weights of another project: a plain ViT, which has a bias for keys too."""
    return dict(
        checkpoint=f'checkpoints/{file}',
        options={'model.backbone.bias': True, 'protocol': f'fine-tune after {name}'},
    )


stages = [
    dict(
        name='pretrain-B800',
        config='configs/pretrain/beit-base-p16_dalle_16xb128-800e_in1k-224.py',
        options={'optim_wrapper.accumulative_counts': 2},
    ),
    dict(
        name='ft-B800',
        start='pretrain-B800',
        config='configs/classification/beit-base-p16_ft_8xb128-100e_in1k-224.py',
    ),
]
backbones = {
    'deit-B': _vit('DeiT', 'deit_base_patch16_224-b5f2ef4d.pth'),
    'dino-B': _vit('DINO', 'dino_vitbase16_pretrain.pth'),
    'mocov3-B': _vit('MoCo v3', 'vit-b-300ep.pth.tar'),
    'B800': '{pretrain-B800}',
    'ft-B800': '{ft-B800}',
    'scratch': None,
}
_cifar = 'configs/classification/beit-base-p16_ft_8xb64-150e_cifar100-224.py'
_after = 'configs/classification/beit-base-p16_ft-after-in1k_8xb64-150e_cifar100-224.py'
recipes = {'cifar100': dict(config={row: _after if row == 'ft-B800' else _cifar for row in backbones})}
