"""benchmarks/scale.py: what it simulates is what real ranks hold and send; its plan has the numbers of the recipe."""

import copy
import multiprocessing
import os
import sys

import pytest
import torch
from processes import ROOT, STACK, call
from ranks import free_port
from torch import distributed as dist

from beit_mm.benchmark.cost import build_on_meta
from beit_mm.engine.configs import load_config

sys.path.append(str(ROOT / 'benchmarks'))
import scale
import scale_tables
import simulated
from simulated import GATHER, SCATTER, Plan, simulate

SMALL = {
    'model.backbone.arch': dict(_delete_=True, embed_dims=64, num_layers=3, num_heads=2, feedforward_channels=96),
    'model.backbone.drop_path_rate': 0.0,  # it drops other samples each time
    'model.backbone.fused_attention': False,  # torch has other kernels for tensors without memory
    'model.head.embed_dims': 64,
    'model.target.tokenizer.n_hid': 8,
}


def config():
    return load_config(
        ROOT / 'configs/pretrain/beit-plus-large-p16_dalle_32xb64-150e_in22k-224.py', copy.deepcopy(SMALL)
    )


def _rank(rank: int, ranks: int, port: int, plans: list[Plan], queue) -> None:
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(ranks))
    torch.set_num_threads(1)
    dist.init_process_group('gloo')
    found = [simulate(config(), plan, on_card=False, real=True) for plan in plans]
    if rank == 0:
        queue.put([tuple(one) for one in found])
    dist.destroy_process_group()


def on_real_ranks(ranks: int, plans: list[Plan]) -> list[simulated.Taken]:
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(STACK)
    queue, port = context.Queue(), free_port()
    processes = [context.Process(target=_rank, args=(i, ranks, port, plans, queue)) for i in range(ranks)]
    for process in processes:
        process.start()
    try:
        return [simulated.Taken(*one) for one in queue.get(timeout=60)]
    finally:
        for process in processes:
            process.join(20)
            process.kill()


@pytest.mark.slow
def test_what_is_simulated_is_what_real_ranks_take():
    """Two and four gloo processes: the same bytes of parameters, gradients and moments, the same collectives; the same
    activations, in float32, and with checkpointing in bf16."""
    two = [Plan(2, 3, shard, each, each) for shard in (1, 2) for each in (False, True)]
    for plans in (two, [Plan(4, 2, 2, False, True)]):
        for plan, real in zip(plans, on_real_ranks(plans[0].ranks, plans), strict=True):
            fake = simulate(config(), plan, on_card=False)
            for taken in ('kept', 'peak'):  # a kernel of the CPU keeps sums of a norm in another type
                assert getattr(fake, taken) == pytest.approx(getattr(real, taken), rel=1e-3)
            assert fake._replace(kept=real.kept, peak=real.peak) == real
            if not plan.bf16:
                assert fake == real


@pytest.mark.parametrize('shard', [1, 2, 8])
def test_formulas(shard):
    """8 ranks: bytes held and sent, from the numbers of parameters."""
    plan = Plan(8, 2, shard)
    taken = simulate(config(), plan)
    count = sum(parameter.numel() for parameter in build_on_meta(config()).parameters())
    expected = scale_tables.formula(config(), plan)
    assert taken.sent.keys() == expected.keys()
    for key, number in expected.items():  # shards of small tables are padded
        assert taken.sent[key] == pytest.approx(number, rel=0.03 if shard == 8 else 1e-3)
    assert taken.optimizer == 2 * taken.parameters == 2 * taken.gradients
    assert taken.parameters == pytest.approx(4 * count / shard, rel=0.02)
    if shard == 1:
        assert (taken.parameters, taken.buckets) == (4 * count, 4 * count)
    else:
        assert (taken.calls[GATHER], taken.calls[SCATTER]) == (4 + 3, 4)  # the rest and three blocks; those twice


@pytest.mark.slow
def test_the_plan(tmp_path):
    """The whole script on a narrow model: lengths and data of the recipe."""
    config().dump(tmp_path / 'narrow.py')
    wishes = ('--config', tmp_path / 'narrow.py', '--gpus', 16, '--tflops', 100, '--markdown')
    code, out, err = call('benchmarks/scale.py', *wishes)
    assert code == 0, err
    assert '| 16 | 128 | 2,048 | 0.0015 | 1,039,800 | 150.0 |' in out
    assert 'tar shards: 1.32 TB, of 92.3 kB an image (assumed)' in out
    rows = [line.split(' | ') for line in out.splitlines() if ' % | ' in line]
    assert len(rows) == 3
    assert all(float(row[6].split()[0]) < 3 for row in rows)  # %: padding, of narrow tables


def test_numbers_of_cards_that_make_no_plan(capsys):
    with pytest.raises(SystemExit):
        scale.main(['--gpus', '12'])
    assert '--gpus 12: must divide the batch of 2048, and fill machines of 8' in capsys.readouterr().err
