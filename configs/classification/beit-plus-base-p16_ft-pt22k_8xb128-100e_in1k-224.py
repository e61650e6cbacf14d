"""`beit_plus` base from ImageNet-22K, without labels, to ImageNet-1K at 224 px: the official command. No paper row.

    python tools/train.py configs/classification/beit-plus-base-p16_ft-pt22k_8xb128-100e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The official README's number: 83.7 % top-1 (beit_base_patch16_224_pt22k fine-tuned). Differs from its base in what it
starts from, and in the normalisation, which is that of the pre-training (0.5, 0.5); no repeated augmentation.
"""

_base_ = ['beit-base-p16_ft_8xb128-100e_in1k-224.py']

pretrained = 'work_dirs/beit-plus-base-p16_dalle_16xb128-150e_in22k-224/iter_1039800.pth'
load_from = pretrained
protocol = 'fine-tune after ImageNet-22K'
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])
model = dict(backbone=dict(variant='beit_plus'))
train_dataloader = dict(sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))
