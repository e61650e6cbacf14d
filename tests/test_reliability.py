"""docs/reliability.md: 42 checks, each with a test that exists."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / 'docs/reliability.md').read_text()


def test_every_check_has_its_test():
    rows = re.findall(r'^\| (A\d\d) \|.*\| (`[^|]+`) \|$', PAGE, re.MULTILINE)
    assert [check for check, _ in rows] == [f'A{number:02d}' for number in range(1, 43)]
    defined = {
        name for file in TESTS.glob('test_*.py') for name in re.findall(r'^def (test_\w+)', file.read_text(), re.M)
    }
    named = {name for _, cell in rows for name in re.findall(r'`([^`]+)`', cell)}
    files = {name for name in named if name.startswith('tests/')}
    assert named - files - defined == set()
    assert all((TESTS.parent / name).is_file() for name in files)


def test_exit_codes_are_those_of_the_doors():
    from beit_mm.door import EXIT_CODES, READER_GONE

    codes = {int(code) for cell in re.findall(r'^\| ([\d, ]+) \| ', PAGE, re.MULTILINE) for code in cell.split(',')}
    assert codes == {0, 1, READER_GONE, *EXIT_CODES.values()}
