"""benchmark/suite.py: stages chain, what is finished is not run again, what was cut off goes on."""

import json

import pytest
import torch

from beit_mm.benchmark.jobs import run_suite
from beit_mm.benchmark.records import read_all
from beit_mm.benchmark.suite import plan
from beit_mm.engine.configs import ConfigError

SUITE = """
title = 'tiny'
note = 'a test'
root = 'unused'
_tiny = {{
    'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2, 'default_hooks.checkpoint.interval': 1,
    'train_dataloader.dataset.length': 60, 'train_dataloader.batch_size': 4, 'val_dataloader.dataset.length': 4,
    'test_dataloader.dataset.length': 4,
}}
stages = [
    dict(name='tokenizer', kind='tokenizer', options=_tiny,
         config='configs/tokenizer/dvae-512_1xb64-300_embedded-32.py'),
    dict(name='pretrain', kind='pretrain', config='configs/pretrain/beit-mini-p8_dvae_1xb48-1500_embedded-64.py',
         options={{**_tiny, 'model.target.checkpoint': '{{tokenizer}}'}}),
    dict(name='classify', kind='classification', {start}
         config='configs/classification/beit-mini-p8_ft_1xb64-100_embedded-64.py', options=_tiny),
]
"""


def write(tmp_path, start="start='pretrain',"):
    path = tmp_path / 'suite.py'
    path.write_text(SUITE.format(start=start))
    return path


def test_runs_chains_and_goes_on(tmp_path, capfd):
    suite, root = write(tmp_path), tmp_path / 'root'
    torch.set_num_threads(2)
    torch.rand(400_000).mean()  # a thread pool is running: a forked child would wait for its threads for ever
    run_suite(suite, [1], root=str(root), jobs=2)
    done = {p.parent.name: json.loads(p.read_text()) for p in root.glob('seed1/*/done.json')}
    assert set(done) == {'tokenizer', 'pretrain', 'classify'}
    records = {r.task: r for r in read_all(root / 'results')}
    assert {r.seed for r in records.values()} == {1}
    [start] = records['classification'].stages  # lineage: classifier <- pre-training <- tokenizer
    assert start['checkpoint'] == done['pretrain']['checkpoint'] == 'iter_2.pth'
    assert start['sha256'] == records['pretrain'].checkpoint_sha256
    assert start['stages'][0]['sha256'] == records['tokenizer'].checkpoint_sha256
    assert records['classification'].value == pytest.approx(done['classify']['value'])

    work = root / 'seed1' / 'classify'
    assert 'matched' in (work / 'stage.log').read_text()
    capfd.readouterr()
    run_suite(suite, [1], root=str(root), jobs=2)
    again = capfd.readouterr().out
    assert '3 stages' in again
    assert '3 of them finished' in again
    assert (work / 'stage.log').read_text().count('trained in') == 1

    (work / 'done.json').unlink()
    (work / 'iter_2.pth').unlink()
    run_suite(suite, [1], root=str(root), jobs=2)
    assert 'resumed epoch: 0, iter: 1' in (work / 'stage.log').read_text()
    assert json.loads((work / 'done.json').read_text())['value'] == pytest.approx(done['classify']['value'], abs=100)


def test_a_failed_stage_is_named(tmp_path):
    suite = tmp_path / 'suite.py'
    suite.write_text(
        "title = note = root = 'x'\nstages = [dict(name='broken', kind='tokenizer', config='configs/nothing.py')]\n"
    )
    with pytest.raises(RuntimeError, match=r'\[1/1\] seed 0 broken failed with exit code 1'):
        run_suite(suite, [0], root=str(tmp_path / 'root'))


def test_plans_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="starts from 'nobody', which is not before it"):
        plan(write(tmp_path, "start='nobody',"), [0])
    stages = plan(write(tmp_path), [0, 2])
    assert [(s.seed, s.name) for s in stages][3] == (2, 'tokenizer')
    assert stages[2].start == 'pretrain'
