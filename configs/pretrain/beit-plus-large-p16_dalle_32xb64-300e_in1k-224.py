"""`beit_plus` large on ImageNet-1K with DALL-E's tokens, 300 epochs: no paper row.

    python tools/train.py configs/pretrain/beit-plus-large-p16_dalle_32xb64-300e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch

No number of the paper's is known. Differs from its base in the size, the gradient clip of 1.0 (Table 12), the variant
(LayerScale 1e-5). bf16 autocast on CUDA, where the official code has fp16 with a loss scaler; float32 elsewhere.
"""

_base_ = ['beit-base-p16_dalle_16xb128-300e_in1k-224.py']

model = dict(backbone=dict(arch='large', variant='beit_plus'), head=dict(embed_dims=1024))
optim_wrapper = dict(type='beit_mm.AmpOptimWrapper', devices=['cuda'], clip_grad=dict(max_norm=1.0))
train_dataloader = dict(batch_size=64)
