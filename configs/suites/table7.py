"""Table 7 of the paper: ADE20K at 640 px with UPerNet after intermediate fine-tuning on ImageNet-22K, single and multi
scale.

    python tools/benchmark.py configs/suites/table7.py --dry-run
    python tools/benchmark.py configs/suites/table7.py --slurm='--partition=gpu --time=72:00:00'

Rows run here (paper, single / multi scale): BEiT-B+ 53.6 / 54.2, BEiT-L+ 56.7 / 57.0. A chain of three trainings
each, of which the first two have nothing to be tested on, and a test over scales and flips. Rows of the paper alone:
Swin-B and -L, and BEiT-L+ with 70 million images that nobody else has.

Bring: data/imagenet22k (one folder per class), data/ade (ADEChallengeData2016), checkpoints/encoder.pkl (OpenAI's).
Eight GPUs a stage; the pre-trainings count in steps, so what is accumulated makes them as many times longer. To start
from the official release instead, give the last stages load_from=FILE in place of start.
"""

title = 'Table 7: ADE20K at 640 px with UPerNet'
note = 'mIoU on the 2,000 validation images of ADE20K; pre-training and intermediate fine-tuning on ImageNet-22K; bf16.'
root = 'work_dirs/paper'
gpus, amp = 8, 'bf16'

_STEPS, _WARM_UP = 150 * 6932, 10_000  # of 2,048 images


def _row(name, pretrain, times, labels, segment, labels_times):
    """Pre-training, labels of ImageNet-22K, UPerNet, and its test over scales; times: steps accumulated to one."""
    longer = {
        'optim_wrapper.accumulative_counts': times,
        'train_cfg.max_iters': times * _STEPS,
        'param_scheduler.0.end': times * _WARM_UP,
        'param_scheduler.1.begin': times * _WARM_UP,
        'param_scheduler.1.end': times * _STEPS,
    }
    return [
        dict(name=f'pretrain-plus-{name}22k', config=f'configs/pretrain/{pretrain}.py', options=longer),
        dict(
            name=f'ft22k-plus-{name}',
            start=f'pretrain-plus-{name}22k',
            config=f'configs/classification/{labels}.py',
            options={'optim_wrapper.accumulative_counts': labels_times},
        ),
        dict(
            name=f'upernet640-plus-{name}', start=f'ft22k-plus-{name}', config=f'configs/segmentation/{segment}.py'
        ),
        dict(
            name=f'upernet640-plus-{name}-multi-scale',
            checkpoint=f'{{upernet640-plus-{name}}}',
            tta=True,
            config=f'configs/segmentation/{segment}.py',
        ),
    ]


stages = [
    *_row(
        'B',
        'beit-plus-base-p16_dalle_16xb128-150e_in22k-224',
        2,
        'beit-plus-base-p16_ft22k_16xb256-90e_in22k-224',
        'beit-plus-base-p16_upernet-ft22k_8xb2-160k_ade20k-640',
        2,
    ),
    *_row(
        'L',
        'beit-plus-large-p16_dalle_32xb64-150e_in22k-224',
        4,
        'beit-plus-large-p16_ft22k_32xb64-90e_in22k-224',
        'beit-plus-large-p16_upernet-ft22k_8xb1-320k_ade20k-640',
        4,
    ),
]
