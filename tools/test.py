"""Evaluate a checkpoint, or predict for images: python tools/test.py CONFIG CHECKPOINT [--images DIR --out FILE]."""

import argparse

from _door import door


@door
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of a config file')
    parser.add_argument('checkpoint', help='weights to evaluate; every key must fit')
    parser.add_argument('--work-dir', help='where the log goes (default: work_dirs/<config name>)')
    parser.add_argument('--record', metavar='DIR', help='write a result record below this folder')
    parser.add_argument('--out', metavar='FILE', help='metrics as JSON; with --images: .json, .csv, or a folder')
    parser.add_argument('--tta', action='store_true', help='segmentation: multi-scale and flip (tta_pipeline)')
    parser.add_argument('--compile', action='store_true', help='torch.compile the backbone; eager where it fails')
    parser.add_argument('--show-dir', metavar='DIR', help='segmentation: pictures of image, prediction and truth')
    parser.add_argument('--images', metavar='DIR_OR_FILE', help='predict for these images, without labels, into --out')
    parser.add_argument('--batch-size', type=int, help="with --images: instead of test_dataloader's; masks: default 1")
    parser.add_argument('--skip-unreadable', action='store_true', help='with --images: leave out what cannot be read')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='override settings of the config')
    parser.add_argument('--trust-checkpoint', action='store_true', help='it holds Python objects: let it run code')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.images and (not args.out or args.record):
        parser.error('--images needs --out, and has nothing to --record: there are no labels')
    from beit_mm.apis import init_model, write_predictions
    from beit_mm.benchmark.evaluation import conclusion
    from beit_mm.engine.compiling import compile_backbone
    from beit_mm.engine.configs import load_config, parse_overrides
    from beit_mm.engine.launch import evaluate, terse_terminal
    from beit_mm.engine.memory import keep_freed_memory
    from beit_mm.engine.workers import end_with_launcher

    keep_freed_memory()
    end_with_launcher()
    config = load_config(args.config, parse_overrides(args.cfg_options))
    if args.images:
        terse_terminal()
        model = init_model(config, args.checkpoint, trust_checkpoint=args.trust_checkpoint)
        if args.compile:
            compile_backbone(model, frozen=True)
        options = dict(batch_size=args.batch_size, skip=args.skip_unreadable, tta=args.tta, show_dir=args.show_dir)
        print(write_predictions(model, args.images, args.out, **options))
        return
    wishes = dict(work_dir=args.work_dir, launcher=args.launcher, trust_checkpoint=args.trust_checkpoint)
    options = dict(tta=args.tta, show_dir=args.show_dir, compiled=args.compile, **wishes)
    runner, metrics, seconds = evaluate(config, args.checkpoint, **options)
    for line in conclusion(runner, config, args.checkpoint, metrics, seconds, args.out, args.record):
        print(line)


if __name__ == '__main__':
    main()
