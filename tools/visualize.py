"""See what a model learned: python tools/visualize.py WHAT CONFIG [CHECKPOINT] [--images DIR|FILE ...] [--out PNG]."""

import argparse

from _door import door, light

MADE = light('benchmark/pictures/kinds')


@door
def main() -> None:
    flags = {
        '--images': dict(nargs='+', metavar='DIR_OR_FILE', help="these images instead of the config's test data"),
        '--indices': dict(nargs='+', type=int, metavar='N', help='which of the images, from 0 (default: the first 4)'),
        '--data': dict(metavar='CONFIG', help="the test data of another config, such as a segmentor's, with masks"),
        '--voc': dict(metavar='DIR', help="images and objects' masks in PASCAL VOC's layout"),
        '--size': dict(type=int, metavar='PIXELS', help='the shorter side that images are brought to, uncropped'),
        '--judged': dict(type=int, metavar='N', help='images behind the numbers (default 200; features 400)'),
        '--layer': dict(type=int, default=-1, metavar='N', help='which block, from 0; default -1, the last'),
        '--query': dict(type=MADE.parse_pair, metavar='ROW,COL', help='which patch looks (default: object or centre)'),
        '--query-pixel': dict(type=MADE.parse_pair, metavar='ROW,COL', help='the patch that looks, by a pixel of it'),
        '--draws': dict(type=int, default=2000, metavar='N', help='how many masks (default 2000)'),
        '--decoder': dict(metavar='FILE', help="OpenAI's decoder.pkl, for the DALL-E tokenizer, which has none"),
        '--absolute': dict(action='store_true', help='how alike the absolute positions are'),
        '--pool': dict(choices=('mean', 'cls'), default='mean', help='what stands for an image: patches or token'),
        '--plane': dict(choices=('tsne', 'pca'), default='tsne', help='how features are laid out'),
        '--against': dict(nargs=2, action='append', default=[], metavar=('CONFIG', 'CHECKPOINT'), help='one more'),
        '--seed': dict(type=int, default=0, help='of what is drawn at random (default 0)'),
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest='kind', metavar=f'{{{",".join(MADE.TAKES)}}}', required=True)
    for kind, takes in MADE.TAKES.items():
        command = kinds.add_parser(kind, help='every one that the config has' if kind == 'all' else None)
        command.add_argument('config', help='path of a config file')
        command.add_argument('checkpoint', nargs='?', help='weights of its model, or of one with the same backbone')
        for name in takes:
            flag = '--' + name.replace('_', '-')
            command.add_argument(flag, **flags[flag])
        command.add_argument(
            '--out', metavar='PNG', help='the picture; for `all` a folder (default: work_dirs/pictures)'
        )
        command.add_argument('--html', metavar='FILE', dest='page_file', help='a page with pictures and numbers in it')
        command.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='override settings of the config')
        command.add_argument(
            '--trust-checkpoint', action='store_true', dest='trusted', help='it holds Python objects: let it run code'
        )
    options = vars(parser.parse_args())
    from beit_mm.benchmark.pictures.gallery import show
    from beit_mm.engine.launch import terse_terminal

    terse_terminal()
    print('\n'.join(show(**options)))


if __name__ == '__main__':
    main()
