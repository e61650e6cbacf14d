"""benchmark/state.py and index.py: what has become of a stage, by what it left; nothing half-written is believed."""

import json
import os
import time

import pytest
from tiny_suite import tiny_suite

from beit_mm.benchmark import jobs
from beit_mm.benchmark.index import table, write_index
from beit_mm.benchmark.jobs import (
    choose,
    describe,
    lacking_files,
    ready,
    refuse_stale,
    run_suite,
    set_aside,
    sweep,
    to_run_anew,
)  # fmt: skip
from beit_mm.benchmark.state import acquire, finished, holder, progress, settings_of, states, weights_left, write_json
from beit_mm.benchmark.suite import plan
from beit_mm.engine.configs import ConfigError


@pytest.fixture
def suite(tmp_path):
    return tiny_suite(tmp_path)


@pytest.fixture
def stages(suite, tmp_path):
    return plan(suite, root=tmp_path / 'root')


def finish(stage, value=12.5, sha256=None):
    """What a stage leaves."""
    record = stage.root / 'results' / f'seed{stage.seed}-{stage.name}.json'
    write_json(record, dict(task=stage.kind, metric='accuracy/top1', value=value, checkpoint_sha256='0'))
    stage.work_dir.mkdir(parents=True, exist_ok=True)
    (stage.work_dir / 'iter_2.pth').write_text('weights')
    done = dict(
        checkpoint='iter_2.pth', sha256=sha256 or stage.name, record=f'../../results/{record.name}', seconds=60.0,
        metric='accuracy/top1', value=value, protocol='fine-tune', settings=settings_of(stage),
    )  # fmt: skip
    write_json(stage.work_dir / 'done.json', done)


def names(stages, lacking=()):
    return [state.name for state in states(stages, lacking).values()]


def test_all_states(stages):
    tokenizer, pretrain, _, scratch = stages
    assert names(stages) == ['pending'] * 4
    texts = [state.text for state in states(stages).values()]
    assert texts == ['ready', 'waits for tokenizer', 'waits for pretrain', 'ready']
    finish(tokenizer)
    assert states(stages)[tokenizer] == ('finished', 'accuracy/top1 12.5, 60 s')
    assert states(stages)[pretrain].text == 'ready'

    write_json(pretrain.work_dir / 'failed.json', dict(code=1, when='noon', lines=['last words']))
    (pretrain.work_dir / 'stage.log').write_text('first\nlast words\n')
    assert names(stages) == ['finished', 'failed', 'blocked', 'pending']
    said = table(states(stages))
    assert 'exit code 1 at noon; see ' in said
    assert '    | last words' in said
    assert 'needs pretrain' in said
    assert said.endswith('1 finished, 1 failed, 1 blocked, 1 pending')

    lock = acquire(pretrain)
    lock.say(4711)
    line = 'Iter(train) [ 10/24]  lr: 1.0e-3  eta: 1 day, 0:04:10  time: 0.5\n'
    (pretrain.work_dir / 'stage.log').write_text(line)
    state = states(stages)[pretrain]
    assert state.name == 'running'
    assert 'pid 4711 on ' in state.text
    assert 'Iter(train) [ 10/24] eta: 1 day, 0:04:10' in state.text
    assert acquire(pretrain) is None
    assert names(stages) == ['finished', 'running', 'pending', 'pending']
    lock.release()
    assert holder(pretrain) is None
    assert names(stages, [scratch]) == ['finished', 'failed', 'blocked', 'missing']


def test_progress_of_epochs(stages):
    log = stages[0].work_dir / 'stage.log'
    log.parent.mkdir(parents=True)
    log.write_text('Epoch(train)  [3][ 20/100]  lr: 1  eta: 0:10:00  loss: 1\nEpoch(val) [2][ 1/4]    eta: 0:00:01\n')
    assert progress(stages[0]) == 'Epoch(val) [2][ 1/4] eta: 0:00:01'


def test_what_was_cut_off_says_from_where_it_goes_on(stages):
    work = stages[0].work_dir
    write_json(work / 'stage.json', settings_of(stages[0]))
    assert states(stages)[stages[0]] == ('pending', 'was cut off before its first checkpoint')
    for step in (2, 10, 9):
        (work / f'iter_{step}.pth').write_text('')
    assert states(stages)[stages[0]].text == 'was cut off; goes on from iter_10.pth'
    (work / 'iter_11.dcp').mkdir()
    assert states(stages)[stages[0]].text == 'was cut off; goes on from iter_11.dcp'


def test_weights_may_be_a_folder_of_several_ranks(stages):
    finish(stages[0])
    done = stages[0].work_dir / 'done.json'
    write_json(done, {**json.loads(done.read_text()), 'checkpoint': 'iter_2.dcp'})
    assert weights_left(stages[0]) is None
    (stages[0].work_dir / 'iter_2.dcp').mkdir()
    assert weights_left(stages[0]) == stages[0].work_dir / 'iter_2.dcp'
    assert [state.text for state in states(stages).values()][1] == 'ready'


@pytest.mark.parametrize('half', ['done', 'record', 'no record', 'old'])
def test_half_written_files_are_not_believed(stages, half):
    stage = stages[0]
    finish(stage)
    done = stage.work_dir / 'done.json'
    record = stage.work_dir / json.loads(done.read_text())['record']
    if half == 'done':
        done.write_text(done.read_text()[:100])
    elif half == 'record':
        record.write_text(record.read_text()[:30])
    elif half == 'no record':
        record.unlink()
    else:
        done.write_text(json.dumps(dict(checkpoint='iter_2.pth', metric='m', value=1.0, seconds=1.0)))
    assert finished(stage) is None
    why = 'done.json is of an older version' if half == 'old' else 'done.json or its record is damaged'
    assert states(stages)[stage] == ('pending', f'{why}; done again')


@pytest.mark.parametrize('key', ['settings', 'seconds', 'record'])
def test_a_key_too_many_does_not_stand_for_one_that_lacks(stages, key):
    stage = stages[0]
    finish(stage)
    done = json.loads((stage.work_dir / 'done.json').read_text())
    del done[key]
    write_json(stage.work_dir / 'done.json', dict(done, finished='noon'))
    assert finished(stage) is None
    assert table(states(stages)).splitlines()[0].endswith('done.json is of an older version; done again')


def test_what_changed_since_is_named(suite, tmp_path, stages):
    for stage in stages:
        finish(stage)
    assert names(stages) == ['finished'] * 4
    tiny_suite(tmp_path, steps=3)
    found = states(plan(suite, root=tmp_path / 'root'))
    assert {state.name for state in found.values()} == {'stale'}
    first = next(iter(found.values())).text
    assert first.startswith('was finished with other settings: train_cfg.max_iters was 2, is 3; ')
    with pytest.raises(ConfigError, match=r'(?s)not what the suite asks for now.*--rerun tokenizer pretrain classify'):
        refuse_stale(found, suite)

    tiny_suite(tmp_path)
    finish(stages[0], sha256='another')
    states_now = states(plan(suite, root=tmp_path / 'root'))
    assert [state.name for state in states_now.values()] == ['finished', 'stale', 'finished', 'finished']
    assert 'tokenizer, which it started from, has been run again since' in next(
        state.text for stage, state in states_now.items() if stage.name == 'pretrain'
    )


def test_a_changed_config_or_file_is_named(tmp_path):
    config, weights = tmp_path / 'own.py', tmp_path / 'w.pth'
    weights.write_text('weights')
    config.write_text("_base_ = 'beit_mm::classification/beit-mini-p8_ft_1xb64-100_embedded-64.py'\n")
    path = tmp_path / 's.py'
    path.write_text(
        f"title = note = 'x'\nroot = {str(tmp_path / 'r')!r}\n"
        f"stages = [dict(name='a', kind='classification', config={str(config)!r}, load_from={str(weights)!r})]\n"
    )
    (stage,) = plan(path)
    finish(stage)
    weights.touch()
    assert names([stage]) == ['finished']  # another date, the same content
    weights.write_text('other weights')
    assert f'{weights} is another file than then' in states([stage])[stage].text
    weights.write_text('weights')
    config.write_text(config.read_text() + 'train_cfg = dict(max_iters=7)\n')
    (stage,) = plan(path)
    assert f'{config}, or a base of it' in states([stage])[stage].text


def test_begun_with_other_settings_is_not_gone_on_with(stages):
    stage = stages[0]
    write_json(stage.work_dir / 'stage.json', dict(settings_of(stage), digest='another'))
    assert names(stages)[0] == 'pending'  # there is nothing to go on from
    (stage.work_dir / 'iter_2.pth').write_text('')
    assert states(stages)[stage].text.startswith('was begun with other settings')


def test_a_rerun_keeps_what_was(suite, stages, capsys):
    for stage in stages:
        finish(stage)
    set_aside(to_run_anew(stages, ['pretrain'], suite), suite)
    assert names(stages) == ['finished', 'pending', 'pending', 'finished']
    kept = sorted(path.name[: len('seed0-pretrain')] for path in (stages[0].root / 'replaced').iterdir())
    assert kept == ['seed0-classify', 'seed0-pretrain']
    for place in (stages[0].root / 'replaced').iterdir():
        assert {path.name for path in place.iterdir()} == {'done.json', 'iter_2.pth', 'record.json'}
    assert sorted(path.stem for path in (stages[0].root / 'results').iterdir()) == [
        'seed0-classify-scratch', 'seed0-tokenizer',
    ]  # fmt: skip
    finish(stages[1])
    lock = acquire(stages[1])
    with pytest.raises(ConfigError, match=r'pretrain \(seed 0\) is running'):
        set_aside([stages[0], stages[1]], suite)
    assert names(stages) == ['finished', 'running', 'pending', 'finished']  # neither of the two has moved
    lock.release()
    with pytest.raises(ConfigError, match="has no stage 'pre'; it has tokenizer, pretrain"):
        choose(stages, ['pre'], suite)


def test_a_rerun_moves_nothing_before_all_is_checked(tmp_path):
    more = "stages.append(dict(name='b', config=stages[2]['config'], load_from='nowhere.pth'))"
    suite, root = tiny_suite(tmp_path, more=more), tmp_path / 'root'
    stages = plan(suite, root=root)
    for stage in stages:
        finish(stage)
    with pytest.raises(ConfigError, match=r'(?s)cannot be run anew.*nowhere\.pth \(for b\)'):
        run_suite(suite, root=root, rerun=['b'], skip_missing=True)
    (stages[4].work_dir / 'done.json').unlink()
    with pytest.raises(ConfigError, match=r'not everything is there:\n  nowhere\.pth'):
        run_suite(suite, root=root, rerun=['pretrain'])
    finish(stages[4])
    finish(stages[0], sha256='another')
    with pytest.raises(ConfigError, match=r'(?s)not what the suite asks for now:\npretrain'):
        run_suite(suite, root=root, rerun=['classify-scratch'])
    finish(stages[0])
    wide = tiny_suite(tmp_path, more="stages[3]['gpus'] = 2")
    with pytest.raises(ConfigError, match='classify-scratch wants 2 devices'):
        run_suite(wide, root=root, rerun=['classify-scratch'], devices=['0'])
    suite = tiny_suite(tmp_path)
    chosen, lacking, anew = ready(suite, plan(suite, root=root), [], ['pretrain'], False)
    assert ([stage.name for stage in anew], lacking, len(chosen)) == (['pretrain', 'classify'], set(), 4)
    costs = describe(suite, root=root, costs=True, rerun=['pretrain'])
    assert '4 runs, 2 to do' in costs
    assert not (root / 'replaced').exists()
    assert names(stages) == ['finished'] * 5


def test_only_what_nobody_writes_any_more_is_swept(stages, monkeypatch):
    results = stages[0].root / 'results' / 'classification'
    results.mkdir(parents=True)
    stages[0].work_dir.mkdir(parents=True)
    dead, alive, own = results / 'a.json.4711.tmp', results / 'b.json.4712.tmp', results / f'c.json.{os.getpid()}.tmp'
    theirs, old, new = results / 'd.json.4713.tmp', results / 'seed0_12.tmp', results / 'seed0_13.tmp'
    checkpoint = stages[0].work_dir / '.iter_2.pth.4711.tmp'
    for path in (dead, alive, own, theirs, old, new, checkpoint):
        path.write_text('half')
    os.utime(old, (time.time() - 4000,) * 2)
    raised = {4711: ProcessLookupError, 4713: PermissionError}

    def kill(pid, number):
        assert number == 0
        if pid in raised:
            raise raised[pid]

    monkeypatch.setattr(jobs.os, 'kill', kill)
    sweep(stages)
    assert sorted(stages[0].root.rglob('*.tmp')) == sorted([alive, own, theirs, new])


def test_a_checkpoint_that_was_deleted_blocks_only_what_needs_it(stages):
    finish(stages[0])
    finish(stages[1])
    (stages[1].work_dir / 'iter_2.pth').unlink()
    (stages[0].work_dir / 'iter_2.pth').unlink()
    assert names(stages) == ['finished', 'finished', 'blocked', 'pending']
    assert states(stages)[stages[2]].text == 'the checkpoint of pretrain is gone: --rerun makes another'


def test_missing_files_are_named_or_skipped(tmp_path):
    more = "stages.append(dict(name='b', config=stages[2]['config'], load_from='nowhere.pth'))"
    suite = tiny_suite(tmp_path, more=more)
    stages = plan(suite, root=tmp_path / 'root')
    with pytest.raises(ConfigError, match=r'nowhere.pth \(for b\): docs/checkpoints.md(.|\n)*--skip-missing'):
        lacking_files(stages, suite, skip=False)
    assert [stage.name for stage in lacking_files(stages, suite, skip=True)] == ['b']
    finish(stages[-1])
    assert lacking_files(stages, suite, skip=False) == set()  # it has what it needed


def test_the_index_of_a_suite_that_is_half_done(suite, stages, tmp_path):
    root = tmp_path / 'root'
    finish(stages[0])
    write_index(suite, root, False, stages)
    index = json.loads((root / 'suite.json').read_text())
    assert [entry['status'] for entry in index['stages']] == ['finished', 'pending', 'pending', 'pending']
    first, second = index['stages'][:2]
    assert first['checkpoint'] == str(root / 'seed0/tokenizer/iter_2.pth')
    assert (first['protocol'], first['seconds']) == ('fine-tune', 60.0)
    assert (second['checkpoint'], second['load_from'], second['options']) == (None, None, {})
    assert (index['title'], index['note']) == ('tiny', 'a test')
    other = plan(suite, [4], root=root)
    finish(other[3])
    write_index(suite, root, False, other)  # of another seed: the first ones stay
    entries = json.loads((root / 'suite.json').read_text())['stages']
    assert [(entry['seed'], entry['status']) for entry in entries if entry['status'] == 'finished'] == [
        (0, 'finished'), (4, 'finished'),
    ]  # fmt: skip
    assert 'seed 4  classify-scratch  accuracy/top1 12.5' in (root / 'status.txt').read_text()
    assert describe(suite, root=root).splitlines()[-1] == '2 finished, 6 pending'
    another = tiny_suite(tmp_path, more="stages = [dict(stages[3], name='other')]", name='another.py')
    write_index(another, root, False, plan(another, [0], root=root))  # shares the root: what was there stays
    assert len(json.loads((root / 'suite.json').read_text())['stages']) == 8 + 2  # its own of seeds 0 and 4
