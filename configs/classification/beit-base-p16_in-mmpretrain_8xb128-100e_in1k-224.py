"""mmpretrain's own recipe for BEiT-B/16 on ImageNet-1K, with beit_mm's backbone in place of its own.

    python tools/train.py configs/classification/beit-base-p16_in-mmpretrain_8xb128-100e_in1k-224.py \
        --cfg-options model.backbone.init_cfg.checkpoint=FILE

mmpretrain's tools/train.py runs it too. FILE: a BEiT that mmpretrain pre-trained, as it is, or any other with
model.backbone.init_cfg.prefix=None.
mmpretrain reports 83.10 top-1 for its backbone (its metafile; trained in 2022); not run by us at this size. The
nearest row of the paper is Table 5, BEiT with LayerScale and relative positions: 83.22.
Differs from the stock config in one word, the backbone's type.
"""

_base_ = ['mmpretrain::beit/benchmarks/beit-base-p16_8xb128-coslr-100e_in1k.py']

custom_imports = dict(imports=['beit_mm'], allow_failed_imports=False)
model = dict(backbone=dict(type='beit_mm.BEiTViT'))
