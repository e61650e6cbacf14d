"""ViT-Tiny from scratch on CIFAR-100 at its own 32 px, patches of 4: a protocol of ours. No paper row.

    python tools/train.py configs/classification/vit-tiny-p4_scratch_1xb128-200e_cifar100-32.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

Not the protocol of Table 11, which is at 224 px: the two are not to be compared. AdamW 1e-3 for 128 images, 200 epochs,
padding by 4, flips, RandAugment, mixup and cutmix. Not trained here.
"""

_base_ = ['vit-tiny-p4_scratch_1xb128-200e_cifar10-32.py']

dataset_name = 'CIFAR100'
model = dict(head=dict(num_classes=100))
data_preprocessor = dict(num_classes=100)
train_dataloader = dict(dataset=dict(type='beit_mm.CIFAR100'))
val_dataloader = dict(dataset=dict(type='beit_mm.CIFAR100'))
test_dataloader = val_dataloader
