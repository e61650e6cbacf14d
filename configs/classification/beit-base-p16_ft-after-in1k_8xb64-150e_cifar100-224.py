"""BEiT-B on CIFAR-100 at 224 px, after intermediate fine-tuning on ImageNet-1K: Table 11.

    python tools/train.py configs/classification/beit-base-p16_ft-after-in1k_8xb64-150e_cifar100-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's number: 91.8 % top-1 (Table 11, BEiT + intermediate fine-tuning). Recipe of Table 13 for CIFAR-100: 150
epochs, batch 512, 20 epochs of warm-up, weight decay 0.3, no erasing; peak rate 4e-3 of the paper's four. The test
resizes the whole image. data/cifar holds the original pickles. Differs from its base in what it starts from.
"""

_base_ = ['beit-base-p16_ft_8xb64-150e_cifar100-224.py']

pretrained = 'work_dirs/beit-base-p16_ft_8xb128-100e_in1k-224/epoch_100.pth'
load_from = pretrained
protocol = 'intermediate fine-tune'
