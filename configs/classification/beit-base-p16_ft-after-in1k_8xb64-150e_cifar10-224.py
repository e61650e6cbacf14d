"""BEiT-B on CIFAR-10 at 224 px, after intermediate fine-tuning on ImageNet-1K: Table 11's protocol on CIFAR-10; no
paper row.

    python tools/train.py configs/classification/beit-base-p16_ft-after-in1k_8xb64-150e_cifar10-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's number: none for CIFAR-10. Recipe of Table 13 for CIFAR-100: 150 epochs, batch 512, 20 epochs of warm-up,
weight decay 0.3, no erasing; peak rate 4e-3 of the paper's four. The test resizes the whole image. data/cifar holds the
original pickles. Differs from its base in the data set and in what it starts from.
"""

_base_ = ['beit-base-p16_ft_8xb64-150e_cifar100-224.py']

pretrained = 'work_dirs/beit-base-p16_ft_8xb128-100e_in1k-224/epoch_100.pth'
load_from = pretrained
protocol = 'intermediate fine-tune'
dataset_name = 'CIFAR10'
model = dict(head=dict(num_classes=10))
data_preprocessor = dict(num_classes=10)
train_dataloader = dict(dataset=dict(type='beit_mm.CIFAR10'))
val_dataloader = dict(dataset=dict(type='beit_mm.CIFAR10'))
test_dataloader = val_dataloader
