"""`beit_plus` large from ImageNet-22K, without labels, to ImageNet-1K at 224 px: the official command. No paper row.

    python tools/train.py configs/classification/beit-plus-large-p16_ft-pt22k_16xb64-50e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch

The official README's number: 86.0 % top-1 (beit_large_patch16_224_pt22k fine-tuned). Differs from its base in the
variant, what it starts from, and the normalisation (0.5, 0.5). bf16 autocast on CUDA, where the official code has fp16
with a loss scaler; float32 elsewhere.
"""

_base_ = ['beit-large-p16_ft_16xb64-50e_in1k-224.py']

pretrained = 'work_dirs/beit-plus-large-p16_dalle_32xb64-150e_in22k-224/iter_1039800.pth'
load_from = pretrained
protocol = 'fine-tune after ImageNet-22K'
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])
model = dict(backbone=dict(variant='beit_plus'))
