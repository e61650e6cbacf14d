"""Convert the weights of a BEiT between projects: python tools/convert_checkpoint.py SRC DST --to FORMAT."""

import argparse
from pathlib import Path

from _door import door, light

FORMATS = list(light('checkpoints/formats').FORMATS)


@door
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', type=Path, help='a .pth, .safetensors, .pdparams or .npz file')
    parser.add_argument('destination', type=Path, help='.pth or .safetensors; for passl .pdparams')
    parser.add_argument('--from', dest='form', default='auto', choices=['auto', *FORMATS], help='default: find out')
    parser.add_argument('--to', required=True, choices=FORMATS, help='the format to write')
    parser.add_argument(
        '--grid', type=int, nargs=2, metavar=('H', 'W'), help='patches to resize positions and tables to'
    )
    parser.add_argument(
        '--from-grid',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='patches they are for, if not a square (default: find out)',
    )
    parser.add_argument('--interpolation', default='geometric', choices=['geometric', 'bicubic', 'bilinear'])
    parser.add_argument(
        '--tables', default='keep', choices=['keep', 'expand', 'share'], help='one table, or one per block'
    )
    parser.add_argument(
        '--drop', nargs='+', action='extend', default=[], metavar='PREFIX', help='our names to leave out, such as head.'
    )
    parser.add_argument('--trust-checkpoint', action='store_true', help='SRC holds Python objects: let it run code')
    args = parser.parse_args()
    from beit_mm.checkpoints.load import convert_file, trust

    if args.trust_checkpoint:
        trust(args.source)
    source = None if args.form == 'auto' else args.form
    report = convert_file(
        args.source,
        args.destination,
        source,
        args.to,
        args.grid,
        args.interpolation,
        args.tables,
        tuple(args.drop),
        args.from_grid,
    )
    print(f'{args.destination}: {report}')


if __name__ == '__main__':
    main()
