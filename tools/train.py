"""Train what a config describes: python tools/train.py configs/pretrain/....py [--resume] [--cfg-options k=v]."""

import argparse
import os

from _door import door


@door
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of a config file')
    parser.add_argument('--work-dir', help='where logs and checkpoints go (default: work_dirs/<config name>)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const=True,
        metavar='auto|FILE',
        help='go on from the newest whole checkpoint of the work_dir (auto: if there is one), or from a file',
    )
    parser.add_argument('--load-from', help='start from the weights of this checkpoint')
    parser.add_argument('--amp', nargs='?', const='bf16', choices=('bf16', 'fp16'), help='mixed precision')
    parser.add_argument('--compile', action='store_true', help='torch.compile the backbone; eager where it fails')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate while training')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate to the batch in use')
    parser.add_argument('--accumulate', type=int, metavar='K', help='K batches make a step: as on K times more GPUs')
    parser.add_argument('--seed', type=int, help="overrides the config's randomness.seed")
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='override settings of the config')
    parser.add_argument('--partial-load', action='store_true', help='--load-from: what does not fit keeps its start')
    parser.add_argument('--trust-checkpoint', action='store_true', help='it holds Python objects: let it run code')
    parser.add_argument('--strategy', choices=('ddp', 'fsdp2'), help='of several ranks: copies, or a sharded model')
    launchers = ('none', 'pytorch', 'slurm', 'mpi')
    parser.add_argument('--launcher', choices=launchers, default='none', help='what started the ranks')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    from beit_mm.engine.configs import load_config, parse_overrides
    from beit_mm.engine.launch import run
    from beit_mm.engine.memory import keep_freed_memory
    from beit_mm.engine.workers import end_with_launcher

    keep_freed_memory()
    end_with_launcher()
    os.environ.setdefault('LOCAL_RANK', str(options.pop('local_rank')))
    config = load_config(options.pop('config'), parse_overrides(options.pop('cfg_options')))
    run(config, compiled=options.pop('compile'), **options)


if __name__ == '__main__':
    main()
