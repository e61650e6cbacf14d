"""Miniature BEiT on k-means tokens: the baseline target that the discrete VAE is compared with. Ours, no paper row.

    python tools/train.py configs/tokenizer/kmeans-512_1xb64-20_embedded-32.py
    python tools/train.py configs/pretrain/beit-mini-p8_kmeans_1xb48-1500_embedded-64.py

Differs from beit-mini-p8_dvae in the target alone.
"""

_base_ = ['./beit-mini-p8_dvae_1xb48-1500_embedded-64.py']

tokenizer_checkpoint = 'work_dirs/kmeans-512_1xb64-20_embedded-32/iter_20.pth'
model = dict(
    target=dict(
        _delete_=True,
        type='beit_mm.TokenTarget',
        checkpoint=tokenizer_checkpoint,
        tokenizer=dict(type='beit_mm.KMeansTokenizer', vocab_size=512, in_channels=1, downsampling=4, neighbourhood=8),
    ),
)
