"""Table 5, the row "+ LayerScale": BEiT-B with LayerScale 0.1 and absolute positions, ImageNet-1K, 300 epochs.

    python tools/train.py configs/pretrain/beit-base-p16-ls_dalle_16xb128-300e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's numbers after fine-tuning: 83.00 % top-1, 45.43 mIoU with UPerNet (Table 5). Differs from its base in
LayerScale alone; that the row keeps absolute positions is our reading.
"""

_base_ = ['beit-base-p16_dalle_16xb128-300e_in1k-224.py']

model = dict(
    backbone=dict(
        variant=None,
        use_abs_pos_emb=True,
        use_rel_pos_bias=False,
        use_shared_rel_pos_bias=False,
        layer_scale_init_value=0.1,
    ),
)
