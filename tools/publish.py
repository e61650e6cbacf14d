"""Publish a checkpoint, or results: python tools/publish.py CHECKPOINT [--out DIR] | --verify FILE | --metafile DIR."""

import argparse
import sys
from pathlib import Path

from _door import door


@door
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('checkpoint', nargs='?', help='strip it, hash it, write it as <name>-<sha256[:8]>.pth')
    what.add_argument('--verify', nargs='+', metavar='FILE', help='are published files what their names say?')
    what.add_argument('--metafile', metavar='RECORDS', help="records below this folder as OpenMMLab's model index")
    what.add_argument('--hf', metavar='RECORDS', help="records below this folder as Hugging Face's .eval_results")
    parser.add_argument(
        '--out', metavar='DIR_OR_FILE', help="default: the checkpoint's folder; --metafile: the terminal"
    )
    parser.add_argument('--name', help="default: the experiment's name")
    parser.add_argument('--safetensors', action='store_true', help='instead of .pth; classes and config are metadata')
    parser.add_argument('--source', metavar='URL', help='with --hf: where readers find more')
    args = parser.parse_args()
    from beit_mm.benchmark import metafiles, publish
    from beit_mm.benchmark.leaderboard import from_folder
    from beit_mm.engine.launch import terse_terminal

    terse_terminal()
    if args.checkpoint:
        path, said = publish.publish(args.checkpoint, args.out, args.name, args.safetensors)
        print('\n'.join([*said, str(path)]))
        return
    if args.verify:
        whole, bad = publish.verify_all(args.verify)
        for line in whole:
            print(line)
        for line in bad:
            print(line, file=sys.stderr)
        if bad:
            raise publish.CheckpointError(f'{len(bad)} of {len(args.verify)} files are not what their names say')
        return
    found, out = from_folder(args.hf or args.metafile), Path(args.out or '.')
    for note in found.notes:
        print(note, file=sys.stderr)
    if args.hf or args.out:
        publish.check_out(out) if args.hf else publish.check_out_file(out)
    if args.hf:
        for path in metafiles.write_eval_results(found.rows, out, args.source):
            print(path)
    elif args.out:
        out.write_text(metafiles.metafile(found.rows))
        print(out)
    else:
        print(metafiles.metafile(found.rows), end='')


if __name__ == '__main__':
    main()
