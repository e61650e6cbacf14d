"""The baseline tokenizer: k-means, 512 centres of 8 x 8 grey pixels around each 4 x 4 cell, on embedded data.

    python tools/train.py configs/tokenizer/kmeans-512_1xb64-20_embedded-32.py

Ours, no paper row: the yardstick for the discrete VAE. The codes come from scikit-learn's mini-batch k-means; the
20 steps only polish them.
"""

_base_ = ['../_base_/runtime.py', '../_base_/datasets/embedded_tokenizer.py']

model = dict(
    type='beit_mm.KMeansTokenizer',
    vocab_size=512,
    in_channels=1,
    downsampling=4,
    neighbourhood=8,
    data_preprocessor=dict(type='beit_mm.MIMDataPreprocessor', mean=[127.5], std=[50.0]),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.5))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=20, val_interval=20)
custom_hooks = [dict(type='beit_mm.CodebookInitHook', num_images=512)]
