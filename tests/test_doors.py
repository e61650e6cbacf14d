"""Doors read their arguments before they import anything heavy, and end as the field's users expect."""

import pytest
from _door import light
from processes import ROOT, call

DOORS = sorted(path.stem for path in (ROOT / 'tools').glob('[!_]*.py'))
ASKED = """
import contextlib, io, runpy, sys
sys.path[0] = 'tools'
for name in sys.argv[1:]:
    for argument in ('--help', '--no-such-option'):
        sys.argv = [f'tools/{name}.py', argument]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                runpy.run_path(sys.argv[0], run_name='__main__')
            except SystemExit as ended:
                assert bool(ended.code) == (argument != '--help'), (name, ended.code)
        assert 'usage:' in said.getvalue(), name
        heavy = {'torch', 'numpy', 'scipy', 'matplotlib', 'mmengine', 'rich', 'yaml', 'beit_mm'} & set(sys.modules)
        assert not heavy, (name, argument, heavy)
"""


def test_arguments_are_read_before_anything_is_imported():
    """`--help` and a wrong argument: neither the stack nor the package has been imported by then."""
    assert len(DOORS) == 12
    code, out, err = call('-c', ASKED, *DOORS)
    assert code == 0, out + err


def test_what_a_door_offers_is_what_the_package_has():
    from beit_mm.benchmark.pictures.gallery import KINDS
    from beit_mm.checkpoints.formats import FORMATS
    from beit_mm.data.verify import CHECKS

    assert list(light('checkpoints/formats').FORMATS) == list(FORMATS)
    assert list(light('data/layouts').VERIFIED) == list(CHECKS)
    assert list(light('benchmark/pictures/kinds').TAKES) == [*KINDS, 'all']


@pytest.mark.parametrize('door', DOORS)
def test_every_door_has_the_one_pattern(door):
    """Imports of the package stand inside `main`, after the arguments."""
    text = (ROOT / 'tools' / f'{door}.py').read_text()
    assert '@door\ndef main() -> None:' in text
    assert '\nfrom beit_mm' not in text
    assert '\nimport beit_mm' not in text


RANK = """
import atexit, sys, types
sys.path[0] = 'tools'
from _door import door
sys.modules['torch.distributed'] = types.SimpleNamespace(
    is_available=lambda: True, is_initialized=lambda: sys.argv[1] == 'rank', get_backend=lambda: 'gloo'
)
class Threads:
    def __del__(self):
        print('torn down')
threads = Threads()
atexit.register(print, 'tidied')
door(lambda: print('done'))()
"""


@pytest.mark.parametrize(('one', 'said'), [('rank', 'done\ntidied\n'), ('alone', 'done\ntidied\ntorn down\n')])
def test_a_rank_ends_before_threads_are_torn_down(one, said):
    """Gloo's abort the process then, and torchrun calls the run failed."""
    assert call('-c', RANK, one) == (0, said, '')


LOG_GONE = """
import logging, sys, types
sys.path[0] = 'tools'
from _door import door
log = logging.FileHandler(sys.argv[1] + '/run.log')
log.baseFilename = sys.argv[1] + '/gone/run.log'
loggers = dict(a=types.SimpleNamespace(handlers=[log]))
sys.modules['mmengine.logging'] = types.SimpleNamespace(MMLogger=types.SimpleNamespace(_instance_dict=loggers))
@door
def main():
    raise OSError('the disk is full')
main()
"""


def test_a_log_that_takes_no_traceback(tmp_path):
    """On a full disk, or where the work_dir is gone, the message is what counts."""
    assert call('-c', LOG_GONE, tmp_path) == (1, '', '\nerror: the disk is full\n')
