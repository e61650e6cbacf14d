"""Run a suite, its leaderboard and its page: python tools/benchmark.py configs/suites/miniature.py [--seeds 3].

What is finished is not run again: after a kill, a failure or a change of mind the same command goes on.
"""

import argparse

from _door import door


@door
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('suite', help='path of a suite config')
    parser.add_argument('--seeds', type=int, metavar='N', help="run seeds 0..N-1 (default: the suite's, else 1)")
    parser.add_argument('--seed', type=int, nargs='+', metavar='N', help='run these seeds')
    parser.add_argument('--stage', nargs='+', metavar='NAME', default=[], help='run these stages only')
    parser.add_argument('--root', help="where everything goes (default: the suite's root)")
    parser.add_argument('--jobs', type=int, help='stages at a time (default: 2 sharing the cores, or one per device)')
    parser.add_argument('--devices', help='GPUs, as 0,1,2,3 (default: all), or none')
    parser.add_argument('--fast', action='store_true', help='a few steps of everything: a check, not a result')
    parser.add_argument('--status', action='store_true', help='say what has become of each stage, and no more')
    parser.add_argument('--dry-run', action='store_true', help='list the runs with their estimated cost, and no more')
    parser.add_argument('--tflops', type=float, help='with --dry-run: what a device sustains, for the time')
    parser.add_argument('--skip-missing', action='store_true', help='leave out what needs files that are not there')
    parser.add_argument(
        '--rerun', nargs='+', metavar='NAME', default=[], help='these again, and what started from them'
    )
    parser.add_argument('--slurm', metavar='OPTIONS', help="submit jobs: --slurm='--partition=gpu --time=9:00:00'")
    parser.add_argument('--slurm-dry-run', action='store_true', help='only write the scripts')
    parser.add_argument('--no-page', action='store_true', help='without leaderboard and page')
    args = parser.parse_args()
    from beit_mm.benchmark.jobs import StageError, describe, ready, run_suite
    from beit_mm.benchmark.processes import devices_of
    from beit_mm.benchmark.slurm import submit
    from beit_mm.benchmark.suite import plan
    from beit_mm.benchmark.suite_page import suite_page

    seeds = args.seed or (None if args.seeds is None else range(args.seeds))
    which = (args.suite, seeds, args.fast, args.root)
    if args.status or args.dry_run:
        print(describe(*which, args.stage, args.dry_run, args.tflops, args.rerun))
        return
    if args.slurm is not None or args.slurm_dry_run:
        stages = plan(*which)
        chosen, lacking, anew = ready(args.suite, stages, args.stage, args.rerun, args.skip_missing)
        how = (args.slurm or '', args.fast, args.slurm_dry_run, anew)
        print('\n'.join(submit(args.suite, stages, chosen, lacking, *how)))
        return
    devices = devices_of(args.devices)
    outcome = run_suite(*which, args.jobs, devices, args.stage, args.rerun, args.skip_missing)
    if not args.no_page and any(outcome.root.glob('results/**/*.json')):
        page = suite_page(outcome.root, outcome.root / 'report.html')
        print(f'\npage: {page.resolve()}')
    if outcome.problems:
        raise StageError('\n'.join([*outcome.problems, 'The same command goes on from there']))


if __name__ == '__main__':
    main()
