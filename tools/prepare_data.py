"""Write the embedded data as files: python tools/prepare_data.py export DIR --format imagefolder|ade20k|cifar."""

import argparse

from beit_mm.data.export import FORMATS, export
from beit_mm.engine.launch import door


@door
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    exporter = commands.add_parser('export', help='write EmbeddedScenes in the layout of a well-known data set')
    exporter.add_argument('out', metavar='DIR', help='a new folder')
    exporter.add_argument('--format', choices=FORMATS, required=True)
    exporter.add_argument('--train', type=int, default=1000, help='training images (default 1000)')
    exporter.add_argument('--val', type=int, default=500, help='validation images (default 500)')
    exporter.add_argument('--size', type=int, help='side in pixels (default 64; CIFAR is 32)')
    exporter.add_argument('--grey', action='store_true', help='the contrast-normalised grey variant')
    exporter.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    size = args.size or (32 if args.format == 'cifar' else 64)
    count = export(args.out, args.format, args.train, args.val, size, args.grey, args.seed)
    print(f'{count} images of {size} x {size} pixels below {args.out}; sources and licences in its CREDITS.txt')


if __name__ == '__main__':
    main()
