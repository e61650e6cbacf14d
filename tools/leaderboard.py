"""Make the leaderboard from result records: python tools/leaderboard.py RESULTS [--out DIR] [--readme README.md]."""

import argparse
import sys

from _door import door


@door
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('results', help='folder of result records, as tools/test.py --record writes them')
    parser.add_argument('--out', help='where leaderboard.md, .csv and .html go (default: RESULTS)')
    parser.add_argument('--title', default='Leaderboard', help='of the page')
    parser.add_argument('--readme', metavar='FILE', help='only bring the block for RESULTS in this file up to date')
    parser.add_argument('--check', action='store_true', help='with --readme: write nothing, fail if the block is stale')
    args = parser.parse_args()
    if args.check and not args.readme:
        parser.error('--check looks at a file: --readme FILE')
    from beit_mm.benchmark import readme
    from beit_mm.benchmark.leaderboard import LEFT_OUT, from_folder
    from beit_mm.benchmark.records import RecordError
    from beit_mm.benchmark.report import conclusions, write_all
    from beit_mm.benchmark.tables import as_text

    found = from_folder(args.results)
    if args.readme:
        print(*found.notes, sep='\n', end='\n' * bool(found.notes), file=sys.stderr)
        if args.check and any(note.startswith(LEFT_OUT) for note in found.notes):
            raise RecordError(f'{args.results}: not every file is a sound record')
        print(readme.refresh(args.readme, args.results, found.rows, args.check))
        return
    written = write_all(found, args.out or args.results, args.title)
    print(as_text(found.rows))
    print('\n'.join(['', *conclusions(found.rows), *found.notes, '', *map(str, written)]))


if __name__ == '__main__':
    main()
