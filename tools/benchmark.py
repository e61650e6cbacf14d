"""Run a suite, its leaderboard and its page: python tools/benchmark.py configs/suites/miniature.py [--seeds 3]."""

import argparse

from beit_mm.benchmark.suite import run_suite
from beit_mm.benchmark.suite_page import suite_page
from beit_mm.engine.launch import door


@door
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('suite', help='path of a suite config')
    parser.add_argument('--seeds', type=int, default=1, metavar='N', help='run seeds 0..N-1 (default 1)')
    parser.add_argument('--root', help="where everything goes (default: the suite's root)")
    parser.add_argument('--jobs', type=int, default=2, help='stages at a time, sharing the cores (default 2)')
    parser.add_argument('--fast', action='store_true', help='a few steps of everything: a check, not a result')
    args = parser.parse_args()
    root = run_suite(args.suite, range(args.seeds), args.fast, args.root, args.jobs)
    page = suite_page(root, root / 'report.html')
    print(f'\npage: {page.resolve()}')


if __name__ == '__main__':
    main()
