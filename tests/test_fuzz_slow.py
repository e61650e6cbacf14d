"""The fuzz tests with four times as many examples, the same ones each time."""

import pytest
from processes import ROOT, call


@pytest.mark.slow
def test_fuzzing_with_more_examples():
    files = sorted(set((ROOT / 'tests').glob('test_fuzz_*.py')) - {ROOT / 'tests/test_fuzz_slow.py'})
    code, out, err = call('-m', 'pytest', '-p', 'no:xdist', *files, BEIT_MM_FUZZ='1', BEIT_MM_FUZZ_SAME='1')
    assert code == 0, (out + err)[-3000:]
