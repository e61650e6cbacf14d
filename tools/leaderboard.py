"""Make the leaderboard from result records: python tools/leaderboard.py RESULTS [--out DIR]."""

import argparse

from beit_mm.benchmark.leaderboard import as_text, from_folder, write_all
from beit_mm.engine.launch import door


@door
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('results', help='folder of result records, as tools/test.py --record writes them')
    parser.add_argument('--out', help='where leaderboard.md, .csv and .html go (default: RESULTS)')
    args = parser.parse_args()
    found = from_folder(args.results)
    written = write_all(found, args.out or args.results)
    print(as_text(found))
    print('\n' + '\n'.join(map(str, written)))


if __name__ == '__main__':
    main()
