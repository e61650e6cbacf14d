"""mmseg's own recipe for BEiT-B/16 with UPerNet on ADE20K, with beit_mm's backbone in place of its own.

    python tools/train.py configs/segmentation/beit-base-p16_upernet-in-mmseg_8xb2-160k_ade20k-640.py \
        --cfg-options model.pretrained=FILE

mmseg's tools/train.py runs it too. FILE: a BEiT of any project as it is; by default the official release under
pretrain/, of which mmseg's own backbone takes nothing until it is converted.
mmseg reports 53.08 mIoU for its backbone (its metafile; trained on mmseg 0.23), the paper 53.6 for this model
(Table 7, BEiT-B+); not run by us at this size. SyncBN, as in the stock config, needs GPUs.
Differs from the stock config in one word, the backbone's type, and says which batch the learning rate is for.
"""

_base_ = ['mmseg::beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py']

custom_imports = dict(imports=['beit_mm'], allow_failed_imports=False)
model = dict(backbone=dict(type='beit_mm.BEiTViT'))
auto_scale_lr = dict(base_batch_size=16)
