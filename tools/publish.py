"""Publish a checkpoint, or results: python tools/publish.py CHECKPOINT [--out DIR] | --verify FILE | --metafile DIR."""

import argparse
from pathlib import Path

from beit_mm.engine.launch import door, terse_terminal


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

    terse_terminal()
    if args.checkpoint:
        path, said = publish.publish(args.checkpoint, args.out, args.name, args.safetensors)
        print('\n'.join([*said, str(path)]))
    elif args.verify:
        for name in args.verify:
            print(publish.verify(name))
    elif args.hf:
        for path in metafiles.write_eval_results(args.hf, args.out or '.', args.source):
            print(path)
    elif args.out:
        Path(args.out).write_text(metafiles.metafile(args.metafile))
        print(args.out)
    else:
        print(metafiles.metafile(args.metafile), end='')


if __name__ == '__main__':
    main()
