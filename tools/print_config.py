"""Print a config as it is after inheritance and overrides: python tools/print_config.py CONFIG [--diff OTHER]."""

import argparse

from mmengine.config import Config

from beit_mm.engine.configs import load_config, parse_overrides
from beit_mm.engine.launch import door


@door
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of a config file')
    parser.add_argument('--diff', metavar='OTHER', help='print what differs from this config instead')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='override settings of the config')
    args = parser.parse_args()
    config = load_config(args.config, parse_overrides(args.cfg_options))
    print(Config.diff(load_config(args.diff), config) if args.diff else config.pretty_text)


if __name__ == '__main__':
    main()
