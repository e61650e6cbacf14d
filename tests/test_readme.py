"""README: what it names exists, and its first screen has the two commands."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def test_named_paths_exist():
    for path in re.findall(r'`((?:beit_mm|configs|tools|tests)/[\w./-]+?)`', README):
        assert (ROOT / path).exists(), path
    doors = next(line for line in README.splitlines() if line.startswith('| `tools/`'))
    for name in re.findall(r'[a-z_]+\.py', doors):
        assert (ROOT / 'tools' / name).is_file(), name


def test_first_screen_and_flags():
    first = README.splitlines()[:25]
    assert any('make demo' in line for line in first)
    assert any('make test' in line for line in first)
    train = (ROOT / 'tools/train.py').read_text()
    usage = README.split('python tools/train.py CONFIG', 1)[1].split('python tools/test', 1)[0]
    for flag in re.findall(r'--[a-z-]+', usage):
        assert f"'{flag}'" in train, flag
    makefile = (ROOT / 'Makefile').read_text()
    for target in set(re.findall(r'make ([a-z-]+)', README)):
        assert re.search(rf'^{target}:', makefile, re.MULTILINE), target
