"""A plan for pre-training on many cards: memory, communication, batch, data and time. Nothing is run on a card.

    python benchmarks/scale.py [--gpus 8 64 512] [--markdown] [--tflops X] [--config CONFIG] [--cfg-options k=v ...]

By default BEiT-L on ImageNet-22K. Memory and communication are simulated (simulated.py), and every figure of
communication is compared with its formula; lengths are counted; time is the paper's own, scaled by counted FLOPs, or
that of `--tflops`, which a card of yours sustains (`python benchmarks/gpu.py`). CPU only.
"""

import argparse
import os

CONFIG = 'configs/pretrain/beit-plus-large-p16_dalle_32xb64-150e_in22k-224.py'
STRATEGIES = ('DDP', 'FSDP2', 'FSDP2 in machines of 8', 'DDP, checkpointing', 'FSDP2, checkpointing')


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--gpus', nargs='+', type=int, default=[8, 64, 512], metavar='N', help='cards; default: 8 64 512'
    )
    parser.add_argument('--config', default=CONFIG, help='of masked image modeling (default: BEiT-L on ImageNet-22K)')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='override settings of the config')
    parser.add_argument('--tflops', type=float, help="10^12 FLOP/s that a card sustains (default: the paper's V100)")
    parser.add_argument('--image-bytes', type=float, help="of an image, on average (default: ImageNet-22K's)")
    parser.add_argument('--markdown', action='store_true', help='tables for a page')
    parser.add_argument('--list', action='store_true', help='say what would be simulated, and simulate nothing')
    args = parser.parse_args(arguments)
    if args.list:
        print('\n'.join(f'{gpus} GPUs: {strategy}' for gpus in args.gpus for strategy in STRATEGIES))
        return
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    import scale_tables

    try:
        print(scale_tables.report(args))
    except scale_tables.PlanError as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
