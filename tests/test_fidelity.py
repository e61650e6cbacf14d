"""docs/fidelity.md: every test that it names exists, and every defect has one."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / 'docs' / 'fidelity.md').read_text()


def test_every_test_it_names_exists():
    named = re.findall(r'`(test_\w+\.py)::(test_\w+)`', PAGE)
    assert len(named) > 60
    defined = {}
    for file, name in named:
        if file not in defined:
            tree = ast.parse((TESTS / file).read_text())
            defined[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in defined[file], f'{file}::{name}'


def test_every_row_names_one_and_has_every_cell():
    rows, cells = 0, 0
    for line in PAGE.splitlines():
        if not line.startswith('|'):
            cells = 0
        elif not cells:
            cells = line.count('|')  # the head
        else:
            assert line.count('|') == cells, line
            if not line.startswith('|---'):
                assert re.search(r'`test_\w+\.py::test_\w+`', line), line
                rows += 1
    assert rows > 60


def test_the_defects_are_all_there():
    assert re.findall(r'^\| (B\d+) \|', PAGE, re.MULTILINE) == [f'B{i}' for i in range(1, 19)]
