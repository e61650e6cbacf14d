"""What is installed, what was tested, which workarounds are active, and the one line that mends a wrong set-up."""

import argparse
import sys

from _door import door


@door
def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    try:
        from beit_mm import compat
    except ImportError as error:
        print(f'beit_mm does not import: {error}')
        sys.exit(1)
    found = compat.versions()
    print(f'Python {sys.version.split()[0]} (tested: 3.11)\n')
    for name, version in found.items():
        tested = compat.TESTED[name]
        verdict = 'tested' if version.split('+')[0] == tested else f'tested is {tested}' if version else 'MISSING'
        print(f'{name:>16}  {version or "-":<18} {verdict}')
    print('\nworkarounds (beit_mm/compat.py):')
    for workaround in compat.WORKAROUNDS:
        name = workaround.apply.__name__
        print(
            f'  {name:<34} {compat.ACTIVE.get(name, "not needed here")}  [{workaround.needed}; {workaround.upstream}]'
        )
    command = compat.mending_command(found)
    print(f'\nto get the tested versions: {command}' if command else '\nall versions are the tested ones')
    missing = [name for name, version in found.items() if not version]
    sys.exit(1 if missing else 0)


if __name__ == '__main__':
    main()
