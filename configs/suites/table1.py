"""Table 1 of the paper: ImageNet-1K top-1 of BEiT-B and BEiT-L at 224 and 384 px, beside what others pre-trained.

    python tools/benchmark.py configs/suites/table1.py --dry-run
    python tools/benchmark.py configs/suites/table1.py --skip-missing
    python tools/benchmark.py configs/suites/table1.py --slurm='--partition=gpu --time=72:00:00'

Rows run here (paper): BEiT-B 83.2, BEiT384-B 84.6, BEiT-L 85.2, BEiT384-L 86.3, DeiT-B from scratch 81.8, MoCo v3-B
83.2, DINO-B 82.8, ViT-B supervised on ImageNet-22K (84.0 at 384 px; here at 224). The last three are their authors'
weights in BEiT's recipe, not in their own. Rows of the paper alone: ViT384-B and -L from scratch, DeiT384-B,
ViT384-L, iGPT-1.36B, ViT384-B-JFT300M, MoCo v3-L.

Bring: data/imagenet; checkpoints/encoder.pkl (OpenAI's), and for the rows of others dino_vitbase16_pretrain.pth,
vit-b-300ep.pth.tar (MoCo v3) and B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz (Google), all in
checkpoints/ (docs/checkpoints.md). Eight GPUs a stage; steps are accumulated to the recipes' batches. All paper
suites share work_dirs/paper: what one has pre-trained the others find there.
"""

title = 'Table 1: ImageNet-1K'
note = 'Top-1 on the 50,000 validation images of ImageNet-1K, with the recipes of Tables 12 and 13, bf16.'
root = 'work_dirs/paper'
gpus, amp = 8, 'bf16'


def _accumulated(times):
    return {'optim_wrapper.accumulative_counts': times}


_pretrain = 'configs/pretrain/beit-{}_dalle_{}-800e_in1k-224.py'
_classify = 'configs/classification/{}_in1k-{}.py'
stages = [
    dict(name='pretrain-B800', config=_pretrain.format('base-p16', '16xb128'), options=_accumulated(2)),
    dict(name='ft-B800', start='pretrain-B800', config=_classify.format('beit-base-p16_ft_8xb128-100e', 224)),
    dict(name='ft384-B800', start='ft-B800', config=_classify.format('beit-base-p16_ft_8xb64-10e', 384)),
    dict(name='pretrain-L800', config=_pretrain.format('large-p16', '32xb64'), options=_accumulated(4)),
    dict(
        name='ft-L800',
        start='pretrain-L800',
        config=_classify.format('beit-large-p16_ft_16xb64-50e', 224),
        options=_accumulated(2),
    ),
    dict(
        name='ft384-L800',
        start='ft-L800',
        config=_classify.format('beit-large-p16_ft_16xb32-10e', 384),
        options=_accumulated(2),
    ),
    dict(name='deit-B', config=_classify.format('deit-base-p16_scratch_16xb64-300e', 224), options=_accumulated(2)),
    dict(name='ft-dino-B', config=_classify.format('vit-base-p16_dino-ft_8xb128-100e', 224)),
    dict(name='ft-mocov3-B', config=_classify.format('vit-base-p16_mocov3-ft_8xb128-100e', 224)),
    dict(name='ft-vit22k-B', config=_classify.format('vit-base-p16_vit-ft_8xb128-100e', 224)),
]
