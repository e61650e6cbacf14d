"""Look at runs, results, models, data and schedules: python tools/analyze.py curves|confusion|per-class|... -h."""

import argparse

from _door import door


@door
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    curves = commands.add_parser('curves', help='training curves of runs in one picture; seconds per step')
    curves.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='what tools/train.py --work-dir named')
    curves.add_argument('--keys', nargs='+', metavar='KEY', help='what to draw (default: loss and the main metrics)')
    curves.add_argument('--legend', nargs='+', metavar='NAME', help='a name for each run; equal names are its seeds')
    confusion = commands.add_parser('confusion', help='which class is taken for which: of images, or of pixels')
    confusion.add_argument(
        '--normalize', choices=('true', 'pred', 'all'), help='shares of what (default: true; CSV: counts)'
    )
    confusion.add_argument('--top', type=int, default=10, metavar='N', help='pairs to name (default 10)')
    classes = commands.add_parser('per-class', help='IoU or accuracy of each class, best first')
    classes.add_argument('source', metavar='CONFIG|RECORD.json', help='a config, with a checkpoint, or one record')
    classes.add_argument('checkpoint', nargs='?')
    flops = commands.add_parser('flops', help='parameters and multiply-accumulates by module; needs no data')
    flops.add_argument('--shape', nargs='+', type=int, metavar='N', help="H W in pixels (default: the config's)")
    flops.add_argument('--batch', type=int, default=1, metavar='N', help='images at once; the table is for one')
    flops.add_argument('--depth', type=int, default=2, metavar='N', help='of modules in modules (default 2)')
    browse = commands.add_parser('browse', help='what the pipeline makes of images: augmentations, labels, masks')
    browse.add_argument('--split', choices=('train', 'val', 'test'), default='train')
    browse.add_argument('--indices', nargs='+', type=int, default=[0, 1, 2, 3], metavar='I', help='default 0 1 2 3')
    browse.add_argument('--epochs', type=int, default=3, metavar='K', help='times that each is augmented (default 3)')
    browse.add_argument('--seed', type=int, default=0, help='of the augmentations')
    schedule = commands.add_parser('schedule', help='learning rate, weight decay, momentum of every layer; no data')
    schedule.add_argument('--images', type=int, metavar='N', help='of the training data, where they are not here')
    schedule.add_argument('--ranks', type=int, metavar='N', help='processes (default: as auto_scale_lr implies)')
    schedule.add_argument('--accumulate', type=int, metavar='K', help='as in tools/train.py')
    for command in (confusion, flops, browse, schedule):
        command.add_argument('config', help='path of a config file')
    confusion.add_argument('checkpoint', help='weights to test; every key must fit')
    for command in (confusion, classes):
        command.add_argument('--work-dir', help='where the log goes (default: work_dirs/<config name>)')
    endings = {curves: '.svg, .png or .csv', confusion: '.png or .csv', classes: '.csv or .md', flops: '.csv',
               browse: '.png; default browse.png', schedule: '.png or .csv'}  # fmt: skip
    for command, text in endings.items():
        command.add_argument('--out', default='browse.png' if command is browse else None, metavar='FILE', help=text)
        if command is not curves:
            command.add_argument(
                '--cfg-options', nargs='+', metavar='KEY=VALUE', help='override settings of the config'
            )
    options = vars(parser.parse_args())
    from beit_mm.benchmark.analysis import run

    print(run(options.pop('command'), options))


if __name__ == '__main__':
    main()
