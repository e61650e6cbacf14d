"""Table 4 of the paper: what blockwise masking, visual tokens and hiding are worth, on ImageNet-1K and ADE20K.

    python tools/benchmark.py configs/suites/table4.py --dry-run
    python tools/benchmark.py configs/suites/table4.py --slurm='--partition=gpu --time=72:00:00'

All seven rows (paper, top-1 / mIoU): BEiT 82.86 / 44.65, random masks 82.77 / 42.93, pixels 81.04 / 41.38, pixels
with random masks 80.50 / 37.09, recover all tokens 82.59 / 40.93, the same without masking 81.67 / 36.73, 800 epochs
83.19 / 45.58. Each is a pre-training that its two fine-tunings share; the others differ from BEiT's 300 epochs in one
config each. In miniature, on embedded data: miniature_tables.py.

Bring: data/imagenet, data/ade (ADEChallengeData2016), checkpoints/encoder.pkl (OpenAI's; the rows with pixels do
without it: --skip-missing). Eight GPUs a stage. Shares work_dirs/paper with the other tables.
"""

title = 'Table 4: ablations of masking and targets'
note = (
    'Top-1 on the 50,000 validation images of ImageNet-1K; mIoU of SETR-PUP on the 2,000 of ADE20K, single scale. '
    'Pre-training of 300 epochs on ImageNet-1K but for the last row; bf16.'
)
root = 'work_dirs/paper'
gpus, amp = 8, 'bf16'


def _row(name, pretrain, segment, protocol=None):
    """A pre-training and the two fine-tunings that start from it; protocol: what the classifier's row is called."""
    return [
        dict(
            name=f'pretrain-{name}',
            config=f'configs/pretrain/beit-base-p16_{pretrain}_in1k-224.py',
            options={'optim_wrapper.accumulative_counts': 2},
        ),
        dict(
            name=f'ft-{name}',
            start=f'pretrain-{name}',
            config='configs/classification/beit-base-p16_ft_8xb128-100e_in1k-224.py',
            options={'protocol': protocol} if protocol else {},
        ),
        dict(
            name=f'setr-{name}',
            start=f'pretrain-{name}',
            config=f'configs/segmentation/beit-base-p16_{segment}_8xb2-160k_ade20k-512.py',
        ),
    ]


stages = [
    *_row('B300', 'dalle_16xb128-300e', 'setr-pup-pt300'),
    *_row('random', 'dalle-random_16xb128-300e', 'setr-pup-random', 'fine-tune, random masks'),
    *_row('pixels', 'pixels_16xb128-300e', 'setr-pup-pixels', 'fine-tune, pixels'),
    *_row('pixels-random', 'pixels-random_16xb128-300e', 'setr-pup-pixels-random', 'fine-tune, pixels, random masks'),
    *_row('recover-all', 'dalle-recover-all_16xb128-300e', 'setr-pup-recover-all', 'fine-tune, all tokens'),
    *_row('no-masking', 'dalle-no-masking_16xb128-300e', 'setr-pup-no-masking', 'fine-tune, all tokens, no mask'),
    *_row('B800', 'dalle_16xb128-800e', 'setr-pup'),
]
