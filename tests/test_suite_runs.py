"""benchmark/jobs.py, processes.py and worker.py: stages chain and run once; what waits, what is left out, devices."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from test_suite_state import finish
from tiny_suite import tiny_suite

from beit_mm.benchmark import jobs as running
from beit_mm.benchmark import processes, worker
from beit_mm.benchmark.jobs import run_suite
from beit_mm.benchmark.processes import devices_of, start, stop
from beit_mm.benchmark.records import collect
from beit_mm.benchmark.state import acquire, holder, write_json
from beit_mm.benchmark.suite import plan
from beit_mm.checkpoints.load import sha256
from beit_mm.engine import workers
from beit_mm.engine.configs import ConfigError


@pytest.mark.slow
def test_runs_chains_and_goes_on(tmp_path, capfd):
    suite, root = tiny_suite(tmp_path, more='stages.pop()'), tmp_path / 'root'
    torch.set_num_threads(2)
    torch.rand(400_000).mean()  # a thread pool is running: a forked child would wait for its threads for ever
    assert run_suite(suite, [1], root=root, jobs=2) == (root, [])
    done = {p.parent.name: json.loads(p.read_text()) for p in root.glob('seed1/*/done.json')}
    assert set(done) == {'tokenizer', 'pretrain', 'classify'}
    records = {r.task: r for r in collect(root / 'results').records}
    assert {r.seed for r in records.values()} == {1}
    [begun] = records['classification'].stages  # lineage: classifier <- pre-training <- tokenizer
    assert begun['checkpoint'] == done['pretrain']['checkpoint'] == 'iter_2.pth'
    assert begun['sha256'] == records['pretrain'].checkpoint_sha256 == done['pretrain']['sha256']
    assert begun['stages'][0]['sha256'] == records['tokenizer'].checkpoint_sha256
    assert records['classification'].value == pytest.approx(done['classify']['value'])
    entries = {entry['name']: entry for entry in json.loads((root / 'suite.json').read_text())['stages']}
    assert {entry['status'] for entry in entries.values()} == {'finished'}
    assert entries['classify']['load_from'] == str(root / 'seed1/pretrain/iter_2.pth')
    assert entries['pretrain']['options']['model.target.checkpoint'] == str(root / 'seed1/tokenizer/iter_2.pth')

    work = root / 'seed1' / 'classify'
    assert 'matched' in (work / 'stage.log').read_text()
    capfd.readouterr()
    run_suite(suite, [1], root=root, jobs=2)
    assert '3 stages below' in (again := capfd.readouterr().out)
    assert '3 of them finished' in again
    assert (work / 'stage.log').read_text().count('trained in') == 1

    orders = json.loads((work / 'stage.json').read_text())
    adopted = worker._adopted(orders, work, str(work / 'iter_2.pth'))  # as if killed before done.json was written
    assert adopted == {key: done['classify'][key] for key in ('record', 'metric', 'value', 'protocol')}
    assert worker._adopted(orders, work, str(work / 'iter_1.pth')) is None
    (work / 'done.json').unlink()
    (work / done['classify']['record']).unlink()
    (work / 'iter_2.pth').unlink()
    run_suite(suite, [1], root=root, jobs=2)
    assert 'resumed epoch: 0, iter: 1' in (work / 'stage.log').read_text()
    assert len(list((root / 'results').rglob('*.json'))) == 3


class Fake:
    """Stands for processes: what started, when, on which devices; it ends when it is told to."""

    def __init__(self, ends, delay=0.0):
        self.ends, self.delay, self.log, self.alive, self.most = ends, delay, [], 0, 0

    def start(self, stage, lock, devices, jobs):
        self.log.append((stage.name, tuple(devices)))
        self.alive += 1
        self.most = max(self.most, self.alive)
        lock.say(os.getpid())
        return FakeRunning(self, stage, lock, devices)


class FakeRunning:
    def __init__(self, fake, stage, lock, devices):
        self.fake, self.stage, self.lock, self.devices = fake, stage, lock, devices
        self.until = time.monotonic() + fake.delay

    def exit_code(self):
        if time.monotonic() < self.until:
            return None
        if self.lock:
            code = self.fake.ends.get(self.stage.name, 0)
            if code == 0:
                finish(self.stage)
            self.lock.release()
            self.lock, self.code = None, code
            self.fake.alive -= 1
        return self.code


@pytest.fixture
def fake(monkeypatch):
    def make(ends=None, delay=0.0):
        made = Fake(ends or {}, delay)
        monkeypatch.setattr(running, 'start', made.start)
        monkeypatch.setattr(running, 'stop', lambda *_: None)
        monkeypatch.setattr(running, 'LOOK_ELSEWHERE', 0.2)
        return made

    return make


def test_a_failure_costs_only_what_needs_it(tmp_path, fake, capsys):
    made = fake({'pretrain': 3})
    outcome = run_suite(tiny_suite(tmp_path), root=tmp_path / 'r', jobs=1)
    assert [name for name, _ in made.log] == ['tokenizer', 'classify-scratch', 'pretrain'] or [
        name for name, _ in made.log
    ] == ['tokenizer', 'pretrain', 'classify-scratch']
    assert outcome.problems[0].startswith('[2/4] seed 0 pretrain failed with exit code 3; see ')
    assert outcome.problems[1] == '[3/4] seed 0 classify could not run: it needs pretrain'
    statuses = [entry['status'] for entry in json.loads((tmp_path / 'r/suite.json').read_text())['stages']]
    assert statuses == ['finished', 'failed', 'blocked', 'finished']
    made.ends.clear()
    assert run_suite(tiny_suite(tmp_path), root=tmp_path / 'r', jobs=1).problems == []  # what failed is tried again
    assert [name for name, _ in made.log[3:]] == ['pretrain', 'classify']
    assert 'all stages finished' in capsys.readouterr().out


def test_only_some_stages(tmp_path, fake):
    made, suite = fake(), tiny_suite(tmp_path)
    outcome = run_suite(suite, root=tmp_path / 'r', only=['pretrain'])
    assert outcome.problems == ['[2/4] seed 0 pretrain could not run: it waits for tokenizer']
    run_suite(suite, root=tmp_path / 'r', only=['tokenizer', 'pretrain'])
    assert [name for name, _ in made.log] == ['tokenizer', 'pretrain']


def test_devices(tmp_path, fake, monkeypatch):
    """Never two stages on one device; who wants two gets two."""
    more = "stages = [dict(stages[3], name=f's{i}', options={'train_cfg.max_iters': i + 2}) for i in range(5)]\n"
    more += "stages[1]['gpus'] = 2"
    made = fake(delay=0.3)
    run_suite(tiny_suite(tmp_path, more=more), root=tmp_path / 'r', devices=['4', '7'])
    assert made.most == 2
    assert dict(made.log)['s0'] == ('4',)
    assert sorted(dict(made.log)['s1']) == ['4', '7']
    assert len(made.log) == 5
    with pytest.raises(ConfigError, match='s1 wants 2 devices, and there are 1'):
        run_suite(tiny_suite(tmp_path, more=more), root=tmp_path / 'q', devices=['0'])
    monkeypatch.setattr('torch.cuda.device_count', lambda: 0)
    assert devices_of('none') is None
    with pytest.raises(ConfigError, match='--devices 0,1: torch sees no GPU here'):
        devices_of('0,1')
    monkeypatch.setattr('torch.cuda.device_count', lambda: 4)
    assert devices_of('0, 2') == ['0', '2']
    with pytest.raises(ConfigError, match='each once'):
        devices_of('1,1')


def test_what_another_benchmark_runs_is_waited_for(tmp_path, fake, capsys):
    made, suite = fake(), tiny_suite(tmp_path)
    tokenizer = plan(suite, root=tmp_path / 'r')[0]
    lock = acquire(tokenizer)
    lock.say(os.getpid())

    def end():
        finish(tokenizer)
        lock.release()

    threading.Timer(1.5, end).start()
    assert run_suite(suite, root=tmp_path / 'r').problems == []
    assert sorted(name for name, _ in made.log) == ['classify', 'classify-scratch', 'pretrain']
    said = capsys.readouterr().out
    assert said.count(f'another benchmark runs it (pid {os.getpid()} on ') == 1


def test_a_config_that_is_edited_meanwhile_is_not_mixed_in(tmp_path, fake, monkeypatch):
    config = tmp_path / 'own.py'
    config.write_text("_base_ = 'beit_mm::classification/beit-mini-p8_ft_1xb64-100_embedded-64.py'\n")
    more = f"stages = [stages[0], dict(name='b', kind='classification', config={str(config)!r})]"
    made, suite = fake({'tokenizer': 0}), tiny_suite(tmp_path, more=more)
    start = running.start

    def edit(stage, *args):
        config.write_text('this is no Python')
        suite.write_text('nor is this')
        return start(stage, *args)

    monkeypatch.setattr(running, 'start', edit)
    outcome = run_suite(suite, root=tmp_path / 'r', jobs=1)
    assert outcome.problems == [f'[2/2] seed 0 b: {config} was changed while the benchmark ran']
    assert [name for name, _ in made.log] == ['tokenizer']


def test_what_lacks_a_file_is_left_out(tmp_path, fake, capsys):
    more = "stages.append(dict(name='b', config=stages[2]['config'], load_from='nowhere.pth'))"
    made, suite = fake(), tiny_suite(tmp_path, more=more)
    with pytest.raises(ConfigError, match=r'nowhere\.pth'):
        run_suite(suite, root=tmp_path / 'r')
    assert made.log == []
    assert run_suite(suite, root=tmp_path / 'r', skip_missing=True).problems == []
    assert 'b' not in dict(made.log)
    assert 'b (seed 0) is left out: it needs nowhere.pth\n' in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r'leaves nothing to run; not there:\n  nowhere\.pth \(for b\)'):
        run_suite(suite, root=tmp_path / 'r', only=['b'], skip_missing=True)


def test_a_new_interpreter_holds_the_lock_and_ends_when_asked(tmp_path, monkeypatch):
    """What devices get; here a process that sleeps stands for the worker."""
    stage = plan(tiny_suite(tmp_path), root=tmp_path / 'r')[0]
    sleeper = tmp_path / 'sleeper'
    sleeper.write_text('#!/bin/sh\necho devices $CUDA_VISIBLE_DEVICES; exec sleep 100\n')
    sleeper.chmod(0o755)
    monkeypatch.setattr(processes.sys, 'executable', str(sleeper))
    lock = acquire(stage)
    run = start(stage, lock, ['3'], jobs=1)
    assert holder(stage)['pid'] == run.process.pid  # this process has closed its own end
    orders = json.loads((stage.work_dir / 'stage.json').read_text())
    assert (orders['seed'], orders['checkpoint'], orders['tested']) == (0, None, True)
    for _ in range(100):
        if 'devices 3' in (stage.work_dir / 'stage.log').read_text():
            break
        time.sleep(0.02)
    stop(run)
    assert run.exit_code() == -15
    assert holder(stage) is None


def test_a_process_dies_with_its_parent(tmp_path):
    """The signal that a new interpreter is given, without the imports of the benchmark."""
    code = (
        'import ctypes, functools, os, subprocess, sys\n'
        f'die = lambda: ctypes.CDLL(None).prctl({workers.PR_SET_PDEATHSIG}, 9)\n'
        "child = subprocess.Popen(['sleep', '100'], preexec_fn=die)\n"
        'print(child.pid, flush=True)\nos.kill(os.getpid(), 9)\n'
    )
    pid = int(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout)
    for _ in range(100):
        status = Path(f'/proc/{pid}/stat')
        if not status.exists() or status.read_text().split()[2] == 'Z':
            return
        time.sleep(0.02)
    pytest.fail('it lives on')


def test_only_the_record_of_this_very_test_is_adopted(tmp_path):
    """Killed after the record was written and before done.json: two tests of one file that differ in settings only."""
    weights = tmp_path / 'w.pth'
    weights.write_text('weights')
    stem = 'beit-mini-p8_ft_1xb64-100_embedded-64'
    orders = dict(config=f'configs/classification/{stem}.py', digest='d', starts={}, files={'w.pth': dict(sha256='f')})
    work = tmp_path / 'r' / 'seed0' / 'a'
    record = dict(
        task='classification', config=stem, config_sha256='c', recipe_sha256='e', checkpoint_sha256=sha256(weights),
        protocol='fine-tune', num_images=40, metric='accuracy/top1', value=50.0, date='noon', supersedes=[],
    )  # fmt: skip
    path = tmp_path / 'r' / 'results' / 'classification' / stem / 'seed0_1.json'
    write_json(path, dict(record, supersedes=['0']))
    write_json(work / 'testing.json', dict(since=0.0))  # of an older version: it does not say of what
    assert worker._adopted(orders, work, str(weights)) is None
    write_json(work / 'tested.json', dict(of=worker._deciding(orders), record=worker._content(json.dumps(record))))
    kept = dict(metric='accuracy/top1', value=50.0, protocol='fine-tune')
    wanted = dict(record=f'../../results/classification/{stem}/seed0_1.json', **kept)
    assert worker._adopted(orders, work, str(weights)) == wanted
    for other in (dict(digest='other'), dict(starts={'b': 'f'}), dict(files={'w.pth': dict(sha256='g')})):
        assert worker._adopted({**orders, **other}, work, str(weights)) is None
    for key, value in (('config_sha256', 'x'), ('recipe_sha256', 'x'), ('protocol', 'x'), ('num_images', 4)):
        write_json(path, {**record, key: value})
        assert worker._adopted(orders, work, str(weights)) is None
    path.write_text('{half')
    assert worker._adopted(orders, work, str(weights)) is None
    write_json(path, record)
    weights.write_text('other weights')
    assert worker._adopted(orders, work, str(weights)) is None


def test_a_worker_without_orders_says_so(tmp_path, capsys):
    write_json(tmp_path / 'w' / 'other.json', {})
    with pytest.raises(ConfigError, match=r'stage\.json: is missing or damaged'):
        worker._run(tmp_path / 'w')
