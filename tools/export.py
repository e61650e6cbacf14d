"""Export a model to torch.export or ONNX, compared with itself: python tools/export.py CONFIG CHECKPOINT --to onnx."""

import argparse

from _door import door


@door
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of a config file')
    parser.add_argument('checkpoint', help='its weights; every key must fit')
    parser.add_argument(
        '--to', choices=('torch', 'onnx'), default='torch', help='a .pt2 of torch.export (default), or .onnx'
    )
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help="pixels (default: the config's)")
    parser.add_argument('--dynamic', nargs='?', const='batch', default='', choices=('batch', 'size'), help=(
        'any number of images (batch, the default of this flag), or also any height and width'))  # fmt: skip
    parser.add_argument('--features', action='store_true', help="the backbone's outputs instead of logits")
    parser.add_argument('--with-normalisation', action='store_true', help='images are RGB of 0..255 then')
    parser.add_argument('--opset', type=int, default=20, help='of ONNX (default 20)')
    parser.add_argument(
        '--tolerance', type=float, default=1e-4, help='largest difference, as a share of the largest output'
    )
    parser.add_argument('--out', metavar='FILE', help="default: the checkpoint's name, here")
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='override settings of the config')
    args = parser.parse_args()
    from beit_mm.benchmark import deploy
    from beit_mm.engine.configs import load_config, parse_overrides
    from beit_mm.engine.launch import terse_terminal

    terse_terminal()
    config = load_config(args.config, parse_overrides(args.cfg_options))
    size = tuple(args.size) if args.size else None
    wanted = (args.to, size, args.dynamic, args.features, args.with_normalisation, args.opset, args.tolerance)
    for line in deploy.export(config, args.checkpoint, args.out, deploy.Request(*wanted)):
        print(line)


if __name__ == '__main__':
    main()
