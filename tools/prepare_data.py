"""Write the embedded data as files, check a data set, pack images into tar shards, or compute visual tokens."""

import argparse
import sys

from _door import door, light

LAYOUTS, OPTIONS = light('data/layouts'), light('data/prepare_options')


@door
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    exporter = commands.add_parser('export', help='write EmbeddedScenes in the layout of a well-known data set')
    exporter.add_argument('dir', metavar='DIR', help='a new folder')
    exporter.add_argument('--format', choices=LAYOUTS.EXPORTED, required=True)
    exporter.add_argument('--train', type=int, default=1000, help='training images (default 1000)')
    exporter.add_argument('--val', type=int, default=500, help='validation images (default 500)')
    exporter.add_argument('--size', type=int, help='side in pixels (default 64; CIFAR is 32)')
    exporter.add_argument('--grey', action='store_true', help='the contrast-normalised grey variant')
    exporter.add_argument('--seed', type=int, default=0)
    checker = commands.add_parser('verify', help='check layout, counts, images and labels; exit code 1 on a problem')
    checker.add_argument('dir', metavar='DIR', help='the data set; for lists: what their paths are below')
    checker.add_argument('--format', choices=[*LAYOUTS.VERIFIED, 'config'], required=True, help='config: a segmentor')
    checker.add_argument('--list', metavar='FILE', help='for --format list: lines `path label` or `path`')
    checker.add_argument('--unlabelled', action='store_true', help='labels and class folders do not matter')
    checker.add_argument('--num-classes', type=int, metavar='N', help='labels of lists must be in 0..N-1')
    checker.add_argument('--sample', type=int, metavar='N', help='decode N images of each part (default: all)')
    checker.add_argument('--jobs', type=int, default=4, metavar='N', help='processes that decode (default 4)')
    checker.add_argument('--partial', action='store_true', help='a part of the data set: counts are not required')
    OPTIONS.of_shards(commands.add_parser('shards', help='pack images into tar shards, or index tars (docs/shards.md)'))
    OPTIONS.of_tokens(
        commands.add_parser('tokens', help='compute the tokens of a pre-training config (docs/tokens.md)')
    )
    args = parser.parse_args()
    from beit_mm.data import export, shard_writer, verify
    from beit_mm.engine import configs, data_check, token_maker

    if args.command == 'shards':
        return print(shard_writer.run(args))
    if args.command == 'tokens':
        wishes = (args.views, args.out, args.checkpoint, args.jobs, args.device, args.seed)
        return print(token_maker.make(configs.load_config(args.config), *wishes))
    if args.command == 'verify':
        scope = verify.Scope(args.sample, args.jobs, args.partial, args.unlabelled, args.num_classes, args.list)
        report = args.format == 'config' and data_check.check_data_of(configs.load_config(args.dir), args.sample)
        report = report or verify.verify(args.dir, args.format, scope)
        print(report)
        sys.exit(1 if report.problems else 0)
    size = args.size or (32 if args.format == 'cifar' else 64)
    count = export.export(args.dir, args.format, args.train, args.val, size, args.grey, args.seed)
    print(f'{count} images of {size} x {size} pixels below {args.dir}; sources and licences in its CREDITS.txt')


if __name__ == '__main__':
    main()
