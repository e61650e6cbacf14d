"""Print a config as it is after inheritance and overrides: python tools/print_config.py CONFIG [--diff OTHER]."""

import argparse
import difflib

from _door import door


@door
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of a config file')
    parser.add_argument('--diff', metavar='OTHER', help='print what differs from this config instead')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='override settings of the config')
    args = parser.parse_args()
    from beit_mm.engine.configs import load_config, parse_overrides

    config = load_config(args.config, parse_overrides(args.cfg_options))
    if not args.diff:
        print(config.pretty_text)
        return
    before, after = load_config(args.diff).pretty_text.splitlines(), config.pretty_text.splitlines()
    print('\n'.join(difflib.unified_diff(before, after, args.diff, args.config, lineterm='')) or 'no difference')


if __name__ == '__main__':
    main()
