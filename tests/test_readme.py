"""README and docs: what they name exists, and the first screen has the two commands."""

import re
from pathlib import Path

import pytest
from mmengine.registry import DefaultScope

import beit_mm.data
import beit_mm.engine
import beit_mm.models  # noqa: F401  (registers)
from beit_mm.benchmark import readme
from beit_mm.benchmark.leaderboard import from_folder
from beit_mm.checkpoints.formats import FORMATS
from beit_mm.engine.configs import resolve

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
PAGES = {path.name: path.read_text() for path in [ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')]}


@pytest.mark.parametrize('page', PAGES)
def test_what_a_page_names_exists(page):
    """Paths, flags of the tools, and types of configs."""
    for path in re.findall(r'`((?:beit_mm|configs|tools|tests|docs)/[\w./*-]+?)`', PAGES[page]):
        assert list(ROOT.glob(path)), path
    for tool, rest in re.findall(r'python (tools/\w+\.py)((?:.*\n +(?=[\[-]))*.*)', PAGES[page]):
        text = (ROOT / tool).read_text()
        for module in re.findall(r"light\('([\w/]+)'\)", text):  # where it has some of its arguments
            text += (ROOT / f'beit_mm/{module}.py').read_text()
        for flag in re.findall(r'--[a-z-]+', rest.split(' # ')[0]):
            assert f"'{flag}'" in text, (tool, flag)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        for name in set(re.findall(r'`?(beit_mm\.[A-Z]\w+)\b', PAGES[page])):
            assert resolve(name), name


def test_the_table_of_formats_is_whole():
    first = [line.split('|')[1] for line in PAGES['checkpoints.md'].split('## Loading')[0].splitlines() if '|' in line]
    assert set(re.findall(r'`(\w+)`', ' '.join(first))) == set(FORMATS)


@pytest.mark.parametrize('folder', re.findall(r'<!-- leaderboard: (\S+) -->', README))
def test_its_leaderboard_is_that_of_the_records(folder):
    assert readme.refresh(ROOT / 'README.md', folder, from_folder(ROOT / folder).rows, check=True)


def test_the_rooms_doors_are_there():
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
