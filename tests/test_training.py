"""Curves of runs as files: which runs are seeds of one, whose steps are epochs, how long a step takes."""

import csv
import json

import pytest

from beit_mm.benchmark import curves
from beit_mm.benchmark.analysis import AnalysisError, training


def make(path, lines, seed=None, text='', log=''):
    folder = path / '20260101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)) + '\n')
    if seed is not None:
        (folder / 'config.py').write_text(f"{text}\nrandomness = dict(seed={seed})\nwork_dir = '{path}'\n")
    (folder.parent / 'a.log').write_text(log)
    return str(path)


def losses(*values, times=(0.5, 0.25)):
    return [
        dict(loss=v, time=times[i % 2], data_time=0.05, iter=10 * (i + 1), step=10 * (i + 1))
        for i, v in enumerate(values)
    ]


def test_seeds_are_found_in_paths_and_in_configs(tmp_path):
    names = ['seed0/tune', 'seed1/tune', 'seed0/scratch', 'seed1/scratch']
    by_path = [make(tmp_path / 'a' / n, losses(3.0, 2.0)) for n in names]
    runs = training.read_runs(by_path)
    assert [(r.group, r.seed) for r in runs] == [('tune', 0), ('tune', 1), ('scratch', 0), ('scratch', 1)]
    start = "load_from = '{}/pretrain.pth'"
    named = [('x', 0, 's/seed0'), ('y', 1, 's/seed1'), ('z', 1, ''), ('x2', 0, 's/seed0')]
    by_text = [
        make(tmp_path / 'b' / n, losses(3.0, 2.0), seed, start.format(at) if at else '') for n, seed, at in named
    ]
    runs = training.read_runs(by_text)
    # the last one is the first run again: a mean with it would count a seed twice
    assert [(r.group, r.seed) for r in runs] == [('x', 0), ('x', 1), ('z', 1), ("x'", 0)]
    runs = training.read_runs(by_text, ['a', 'a', 'b', 'b'])
    assert [r.group for r in runs] == ['a', 'a', 'b', 'b']


def test_evaluations_of_epochs_stand_at_their_iterations(tmp_path):
    lines = [
        dict(loss=3.0, time=0.2, epoch=1, iter=30, step=30),
        {'accuracy/top1': 10.0, 'time': 9.0, 'step': 1},
        dict(loss=2.0, time=0.2, epoch=2, iter=67, step=67),
        {'accuracy/top1': 20.0, 'time': 9.0, 'step': 2},
    ]
    log = '2026 - INFO - Epoch(train)  [2][30/37]  lr: 1e-3  eta: 0:01:02  time: 0.2000  data_time: 0.0100  loss: 2.0\n'
    work_dir = make(tmp_path / 'r', lines, log=log)
    assert curves.read_scalars(work_dir)['accuracy/top1'] == ([37, 74], [10.0, 20.0])
    assert curves.read_times(work_dir)['time'] == ([30, 67], [0.2, 0.2])
    assert curves.read_progress(work_dir) == curves.Progress(67, None, '0:01:02', 37)


def test_files_and_tables(tmp_path):
    log = 'INFO - Iter(train) [20/40]  lr: 1e-3  eta: 0:00:13  time: 0.25  data_time: 0.05  loss: 2.0\n'
    made = [make(tmp_path / f'seed{s}' / 'tune', losses(3.0 + s, 2.0 + s), log=log) for s in range(3)]
    text = training.show(made, out=str(tmp_path / 'a.csv'))
    first = text.splitlines()[1].split()
    # mean of 0.5 and 0.25 s, of it 0.05 s for data; 20 steps of it are 7.5 s
    assert first == ['tune', '0', '20/40', '0.3750', '0.1768', '0.5000', '@10', '13.3', '-', '0:00:08', '0:00:13']
    assert '3 ± 1' in text
    with open(tmp_path / 'a.csv') as file:
        rows = list(csv.DictReader(file))
    assert [(r['seed'], r['step'], float(r['value'])) for r in rows][:3] == [
        ('0', '10', 3.0),
        ('0', '20', 2.0),
        ('1', '10', 4.0),
    ]
    training.show(made, out=str(tmp_path / 'a.svg'))
    assert (tmp_path / 'a.svg').read_text().startswith('<?xml')
    training.show(made, keys=['loss'], out=str(tmp_path / 'a.png'))
    assert (tmp_path / 'a.png').read_bytes()[:4] == b'\x89PNG'


def test_mistakes_are_named(tmp_path):
    work_dir = make(tmp_path / 'seed0' / 'tune', losses(3.0))
    with pytest.raises(AnalysisError, match=r"--keys los: .* did you mean 'loss'\? There are: loss"):
        training.show([work_dir], keys=['los'])
    with pytest.raises(AnalysisError, match=r'below it are .*seed0/tune'):
        training.show([str(tmp_path)])
    with pytest.raises(AnalysisError, match=r'--legend has 2 names for 1 runs'):
        training.show([work_dir], legend=['a', 'b'])
    with pytest.raises(AnalysisError, match=r'\.svg or \.png or \.csv'):
        training.show([work_dir], out='a.jpg')
