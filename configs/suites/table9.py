"""Table 9 of the paper: linear probes of BEiT-B and BEiT-L on ImageNet-1K.

    python tools/benchmark.py configs/suites/table9.py --dry-run
    python tools/benchmark.py configs/suites/table9.py

Rows run here (paper): BEiT-B 56.7 (block 9), BEiT-L 73.5 (block 14), by the recipe of Appendix D. Ours besides,
without a number in the paper: every block at once by the official run_linear_eval.py. Rows of the paper alone:
DINO-B, MoCo v3-B and -L, iGPT-L and -XL, which their authors probed in their own ways.

Bring: data/imagenet, checkpoints/encoder.pkl (OpenAI's). Eight GPUs a stage. Shares work_dirs/paper with the other
tables: the pre-trainings are Table 1's. docs/probes.md says how a block is chosen.
"""

title = 'Table 9: linear probes'
note = 'Top-1 on the 50,000 validation images of ImageNet-1K of a linear classifier on frozen features.'
root = 'work_dirs/paper'
gpus, amp = 8, 'bf16'

_probe = 'configs/classification/beit-{}-p16_linear-probe{}_in1k-224.py'
backbones = {
    'B800': [
        dict(
            name='pretrain-B800',
            config='configs/pretrain/beit-base-p16_dalle_16xb128-800e_in1k-224.py',
            options={'optim_wrapper.accumulative_counts': 2},
        )
    ],
    'L800': [
        dict(
            name='pretrain-L800',
            config='configs/pretrain/beit-large-p16_dalle_32xb64-800e_in1k-224.py',
            options={'optim_wrapper.accumulative_counts': 4},
        )
    ],
}
recipes = {
    'probe': dict(
        config={
            'B800': _probe.format('base', '-block9_8xb128-50e'),
            'L800': _probe.format('large', '-block14_8xb128-50e'),
        },
    ),
    'probe-every-block': dict(
        config={
            'B800': _probe.format('base', '_8xb128-100e'),
            'L800': _probe.format('large', '_8xb128-100e'),
        },
        options={'protocol': 'linear probe, every block'},
    ),
}
