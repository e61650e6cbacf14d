"""Table 3 of the paper: ADE20K mIoU of ViT-B with SETR-PUP, by what it was pre-trained on.

    python tools/benchmark.py configs/suites/table3.py --dry-run
    python tools/benchmark.py configs/suites/table3.py --skip-missing

All four rows (paper): supervised pre-training on ImageNet 45.3 (which weights it does not say: DeiT's here), DINO
44.1, BEiT 45.6, BEiT + intermediate fine-tuning on ImageNet-1K 47.7. Ours besides: SETR-PUP from random weights.

Bring: data/imagenet, data/ade (ADEChallengeData2016); checkpoints/encoder.pkl (OpenAI's),
checkpoints/deit_base_patch16_224-b5f2ef4d.pth, checkpoints/dino_vitbase16_pretrain.pth (docs/checkpoints.md). Eight
GPUs a stage. Shares work_dirs/paper with the other tables.
"""

title = 'Table 3: ADE20K with SETR-PUP'
note = 'mIoU on the 2,000 validation images of ADE20K, single scale, with the recipe of Table 14, bf16.'
root = 'work_dirs/paper'
gpus, amp = 8, 'bf16'

_setr = 'configs/segmentation/{}_8xb2-160k_ade20k-512.py'
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
    dict(name='setr-deit-B', config=_setr.format('vit-base-p16_deit-setr-pup')),
    dict(name='setr-dino-B', config=_setr.format('vit-base-p16_dino-setr-pup')),
    dict(name='setr-B800', start='pretrain-B800', config=_setr.format('beit-base-p16_setr-pup')),
    dict(name='setr-ft-B800', start='ft-B800', config=_setr.format('beit-base-p16_setr-pup-after-in1k')),
    dict(name='setr-scratch', config=_setr.format('beit-base-p16_setr-pup-scratch')),
]
