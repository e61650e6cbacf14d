"""Costs by module: against the paper's model, against one another, and through the door."""

import csv
import runpy
import sys

import pytest
import torch
from tiny import CLASSIFY, PRETRAIN, SEGMENT, tiny

from beit_mm.benchmark.analysis import AnalysisError, flops
from beit_mm.benchmark.cost import build_on_meta, cost_of
from beit_mm.engine.configs import load_config

BASE = 'configs/classification/beit-base-p16_ft_8xb128-100e_in1k-224.py'


def test_base_at_224():
    rows, size = flops.count(load_config(BASE))
    by_name = {row.name: row for row in rows}
    assert size == (3, 224, 224)
    assert by_name['backbone'].macs == pytest.approx(17.56e9, abs=0.005e9)
    assert by_name['all'].parameters == 86_558_440
    assert by_name['all'].macs == by_name['backbone'].macs + 768 * 1000
    assert by_name['backbone.patch_embed'].macs == 196 * 768 * 768
    patches, width = 196, 768
    block = (patches + 1) * 12 * width**2 + 2 * (patches + 1) ** 2 * width
    assert by_name['backbone.layers'].macs == 12 * block


def test_a_larger_image_costs_more_attention():
    rows, _ = flops.count(load_config(BASE), shape=(448, 224), depth=3)
    layers = [row.macs for row in rows if row.name.startswith('backbone.layers.')]
    patches, width = 392, 768
    assert layers == [(patches + 1) * 12 * width**2 + 2 * (patches + 1) ** 2 * width] * 12


@pytest.mark.parametrize('path', [CLASSIFY, SEGMENT])
def test_parts_add_up(path):
    rows, size = flops.count(tiny(path), batch=2, depth=1)
    model = build_on_meta(tiny(path))
    with torch.device('meta'):
        images = torch.zeros(1, *size)
    whole = cost_of(model, images, forward=lambda x: model(x, mode='tensor'))
    assert rows[-1] == ('all', *whole)
    assert sum(row.macs for row in rows[:-1]) == whole.macs
    assert sum(row.parameters for row in rows[:-1]) == whole.parameters


def test_pretraining_counts_the_masked_patches_and_the_tokenizer():
    by_name = {row.name: row for row in flops.count(tiny(PRETRAIN))[0]}
    assert by_name['head'].macs == 26 * 24 * 512  # 26 of 64 patches, a row of 512 tokens each
    tokenizer = build_on_meta(tiny(PRETRAIN)).target.tokenizer
    with torch.device('meta'):
        view = torch.zeros(1, 1, 32, 32)
    assert by_name[flops.TOKENIZER] == (flops.TOKENIZER, *cost_of(tokenizer, view, forward=tokenizer.tokens))


def test_through_the_door(tmp_path, monkeypatch, capsys):
    out = tmp_path / 'costs.csv'
    monkeypatch.setattr(sys, 'argv', ['analyze.py', 'flops', CLASSIFY, '--shape', '96', '64', '--out', str(out)])
    runpy.run_path('tools/analyze.py', run_name='__main__')
    assert 'one image of 1 x 96 x 64' in capsys.readouterr().out
    with open(out) as file:
        last = list(csv.DictReader(file))[-1]
    assert last['module'] == 'all'
    assert int(last['macs']) == flops.count(load_config(CLASSIFY), (96, 64))[0][-1].macs


def test_a_size_that_does_not_fit():
    with pytest.raises(AnalysisError, match=r'--shape 60 64.*patches of 8'):
        flops.count(tiny(CLASSIFY), shape=(60, 64))
