"""BEiT-B on the tokens of our own discrete VAE: the row "our re-implementation" of Table 8, ImageNet-1K, 300 epochs.

    python tools/train.py configs/tokenizer/dvae-8192_8xb64-3000k_in1k-112.py
    python tools/train.py configs/pretrain/beit-base-p16_dvae_16xb128-300e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

`tokenizer_checkpoint` is where the first command leaves its weights. The paper's number after fine-tuning: 82.70 %
top-1 (Table 8; 82.86 with DALL-E's tokens). Differs from its base in the tokenizer, and the paper's in how that was
trained.
"""

_base_ = ['beit-base-p16_dalle_16xb128-300e_in1k-224.py']

tokenizer_checkpoint = 'work_dirs/dvae-8192_8xb64-3000k_in1k-112/iter_3000000.pth'
model = dict(
    target=dict(
        tokenizer=dict(
            _delete_=True,
            type='beit_mm.DiscreteVAE',
            vocab_size=8192,
            num_downsamples=3,
            hidden_dims=256,
            code_dims=512,
            num_res_blocks=2,
            reconstruction='logit_laplace',
        ),
        checkpoint=tokenizer_checkpoint,
    ),
)
