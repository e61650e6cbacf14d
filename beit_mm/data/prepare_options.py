"""Arguments of `tools/prepare_data.py` shards and tokens; imports nothing heavy, as the door takes it before them."""

import argparse
import re

UNITS = dict(k=10**3, M=10**6, G=10**9)
NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_-]{0,99}')


def size(text: str) -> int:
    """'256M' -> 256,000,000 bytes."""
    found = re.fullmatch(r'(\d{1,6})([kMG]?)', text)
    if not found or not int(found[1]):
        raise argparse.ArgumentTypeError(f'{text!r} is no size, such as 256M or 1G')
    return int(found[1]) * UNITS.get(found[2], 1)


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f'{text!r} is no number from 1')
    return int(text)


def name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f'{text!r}: letters, digits, - and _ only')
    return text


def of_shards(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('dir', metavar='DIR', help='a new folder for the shards; with --index: the one they are in')
    parser.add_argument('--index', action='store_true', help='write only the index of shards that are there')
    source = parser.add_argument_group('images, as beit_mm.ImageList finds them')
    source.add_argument(
        '--root', metavar='FOLDER', default='', help='data_root: class folders, or what lists are below'
    )
    source.add_argument('--split', default='', help='train: FOLDER/train, and FOLDER/meta/train.txt if it is there')
    source.add_argument('--prefix', default='', help='folder below FOLDER that has the images (data_prefix)')
    source.add_argument(
        '--list', metavar='FILE', default='', help='lines `path label` or `path`, below FOLDER (ann_file)'
    )
    source.add_argument('--unlabelled', action='store_true', help='labels and class folders do not matter')
    source.add_argument('--num-classes', type=positive, metavar='N', help='labels must be in 0..N-1')
    how = parser.add_argument_group('shards')
    how.add_argument(
        '--bytes', type=size, default=size('256M'), metavar='SIZE', help='about, of a shard (default 256M)'
    )
    how.add_argument('--samples', type=positive, metavar='N', help='of a shard, at most')
    how.add_argument('--order', choices=('shuffled', 'list'), default='shuffled', help='default: shuffled, by --seed')
    how.add_argument('--seed', type=int, default=0, help='of the order')
    how.add_argument('--name', type=name, help="of the shards: NAME-000000.tar (default: the split's, or shard)")
    how.add_argument(
        '--check',
        choices=('no', 'stop', 'skip'),
        default='no',
        help='decode images: end at, or leave out, those that cannot be read',
    )
    how.add_argument(
        '--labels',
        choices=('auto', 'cls', 'folder', 'tar', 'none'),
        default='auto',
        help='with --index: where labels are (default: .cls members, else folders, else tars)',
    )
    how.add_argument('--jobs', type=positive, default=4, metavar='N', help='processes (default 4)')


def of_tokens(tokens: argparse.ArgumentParser) -> None:
    tokens.add_argument('config', metavar='CONFIG')
    tokens.add_argument('--views', type=int, metavar='K', help="of each image (default: the config's)")
    tokens.add_argument('--out', metavar='DIR', help="the cache's folder (default: the config's)")
    tokens.add_argument('--checkpoint', metavar='FILE', help="the tokenizer's weights (default: the config's)")
    tokens.add_argument('--jobs', type=int, default=4, metavar='N', help='processes that make views (default 4)')
    tokens.add_argument('--device', help='where the tokenizer runs (default: CUDA, if there is one)')
    tokens.add_argument('--seed', type=int, help="that views are drawn for (default: the config's)")
