"""The kinds of pictures that tools/visualize.py makes, and the options that each of them reads."""

_IMAGES = ('images', 'indices')
TAKES = {  # besides those that all do
    'masks': (*_IMAGES, 'data', 'draws', 'seed'),
    'tokens': (*_IMAGES, 'judged', 'decoder'),
    'reconstruction': (*_IMAGES, 'judged', 'decoder'),
    'attention': (*_IMAGES, 'data', 'voc', 'size', 'judged', 'layer', 'query', 'query_pixel'),
    'rollout': (*_IMAGES, 'data', 'voc', 'size', 'query', 'query_pixel'),
    'relative-bias': ('absolute',),
    'features': (*_IMAGES, 'data', 'voc', 'size', 'judged', 'layer', 'pool', 'plane', 'seed'),
    'segmentation': (*_IMAGES, 'against'),
}
TAKES['all'] = tuple(dict.fromkeys(name for names in TAKES.values() for name in names if name not in ('absolute',)))


def parse_pair(text: str) -> tuple[int, int]:
    """`ROW,COL` -> two numbers. Raises ValueError."""
    parts = text.split(',')
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise ValueError(f'{text!r} is not ROW,COL, two numbers from 0')
    return int(parts[0]), int(parts[1])
