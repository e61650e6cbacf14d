"""Convert the weights of a BEiT between projects: python tools/convert_checkpoint.py SRC DST --to FORMAT. Or put all of
a checkpoint of several ranks into one file that --resume takes: iter_100.dcp iter_100.pth --to training."""

import argparse
from pathlib import Path

from _door import door, light

FORMATS = list(light('checkpoints/formats').FORMATS)


@door
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', type=Path, help='a .pth, .safetensors, .pdparams or .npz file, or a .dcp folder')
    parser.add_argument('destination', type=Path, help='.pth or .safetensors; for passl .pdparams')
    parser.add_argument('--from', dest='form', default='auto', choices=['auto', *FORMATS], help='default: find out')
    parser.add_argument('--to', required=True, choices=[*FORMATS, 'training'], help='the format to write')
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
    from beit_mm.checkpoints.store import as_one_file

    if args.trust_checkpoint:
        trust(args.source)
    form = None if args.form == 'auto' else args.form
    options = args.grid, args.interpolation, args.tables, tuple(args.drop), args.from_grid
    if args.to == 'training':
        if form or args.grid or args.from_grid or args.drop:
            parser.error('--to training changes nothing in a checkpoint: it goes with no other option')
        print(as_one_file(args.source, args.destination))
    else:
        print(f'{args.destination}: {convert_file(args.source, args.destination, form, args.to, *options)}')


if __name__ == '__main__':
    main()
