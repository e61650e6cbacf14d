"""What takes long: the whole road in a few steps, and a training that is killed and goes on. `make test-slow`."""

import json
import os
import re
import signal
import time

import pytest
import torch
import torch.multiprocessing as mp
from payload import Payload
from processes import TORCHRUN, call, started
from test_dvae import SMALL, views
from test_tools import CLASSIFY, assert_mistake
from torch.nn.parallel import DistributedDataParallel

from beit_mm.models import DiscreteVAE

PRETRAIN = 'configs/pretrain/beit-mini-p8_pixels_1xb48-1500_embedded-64.py'


@pytest.mark.slow
def test_the_whole_road_in_a_few_steps(tmp_path):
    code, out, err = call(
        'tools/benchmark.py', 'configs/suites/miniature.py', '--fast', '--root', tmp_path, timeout=600
    )
    assert code == 0, err[-3000:]
    assert 'against from scratch' in out
    assert f'page: {tmp_path}/report.html' in out
    page = (tmp_path / 'report.html').read_text()
    for part in (
        'Training curves',
        'What is behind the mask',
        'Where a patch looks',
        'Segmentation',
        'data:image/png;base64',
    ):
        assert part in page
    assert 'could not be made' not in page
    assert 'the numbers mean nothing' in page
    assert len(list((tmp_path / 'results').rglob('*.json'))) == 6


@pytest.mark.slow
def test_a_killed_training_goes_on(tmp_path):
    command = ['tools/train.py', PRETRAIN, '--work-dir', tmp_path, '--resume', 'auto', '--cfg-options']
    command += ['default_hooks.checkpoint.interval=1', 'train_dataloader.batch_size=4']
    command += ['train_dataloader.dataset.length=40', 'default_hooks.logger.interval=1']
    with started(*command, 'train_cfg.max_iters=2000') as process:
        for _ in range(1000):
            if process.poll() is not None or any(int(p.stem[5:]) >= 3 for p in tmp_path.glob('iter_*.pth')):
                break
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    last = int(re.search(r'iter_(\d+)', (tmp_path / 'last_checkpoint').read_text())[1])
    assert last >= 2
    code, out, err = call(*command, f'train_cfg.max_iters={last + 2}')
    assert code == 0, err
    assert f'resumed epoch: 0, iter: {last}' in out
    assert (tmp_path / f'iter_{last + 2}.pth').is_file()


@pytest.mark.slow
def test_two_processes_train_on_the_cpu(tmp_path):
    command = [*TORCHRUN, 'tools/train.py', PRETRAIN, '--work-dir', tmp_path, '--launcher', 'pytorch', '--cfg-options']
    command += ['train_cfg.max_iters=3', 'train_dataloader.batch_size=4', 'train_dataloader.dataset.length=40']
    code, _, err = call(*command)
    assert code == 0, err[-3000:]
    assert (tmp_path / 'iter_3.pth').is_file()


def _gradients(rank: int, world: int, folder: str) -> None:
    """One backward pass of the ragged batch of test_accumulation, split over the ranks, inside DDP."""
    from test_accumulation import MODEL, part, ragged

    from beit_mm.models import MaskedImageModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, batch = MaskedImageModel(**MODEL), ragged([1, 2, 12, 5])
    if world == 1:
        model.loss(batch)['loss_mim'].backward()
    else:
        torch.distributed.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=world)
        share = part(batch, slice(0, 3) if rank == 0 else slice(3, 4))
        wrapped = DistributedDataParallel(model)
        wrapped(mode='loss', **share)['loss_mim'].backward()
        torch.distributed.destroy_process_group()
    torch.save({name: p.grad for name, p in model.named_parameters()}, f'{folder}/{world}-{rank}.pt')


@pytest.mark.slow
def test_two_ranks_have_the_gradient_of_one(tmp_path):
    """The mean over all masked patches of the step: 15 on one rank and 5 on the other."""
    for world in (1, 2):
        mp.spawn(_gradients, (world, str(tmp_path)), nprocs=world)
    one = torch.load(tmp_path / '1-0.pt')
    for rank in (0, 1):
        for name, gradient in torch.load(tmp_path / f'2-{rank}.pt').items():
            torch.testing.assert_close(gradient, one[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.slow
def test_no_door_runs_what_a_checkpoint_holds(tmp_path):
    """Also under the switch that makes torch.load run it; and with --trust-checkpoint it is said what that means."""
    marker, path = tmp_path / 'ran', tmp_path / 'bad.pth'
    torch.save(dict(state_dict={}, payload=Payload(marker)), path)
    work_dir = ['--work-dir', tmp_path / 'w']
    for command in (
        ['tools/train.py', CLASSIFY, '--load-from', path, *work_dir],
        ['tools/train.py', CLASSIFY, '--resume', path, *work_dir],
        ['tools/test.py', CLASSIFY, path, *work_dir],
        ['tools/convert_checkpoint.py', path, tmp_path / 'out.pth', '--to', 'unilm'],
    ):
        returned = call(*command, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='1')
        assert_mistake(returned, str(path), 'holds Python objects besides tensors (', 'allow it: --trust-checkpoint')
        assert not marker.exists()
    code, out, err = call(
        'tools/convert_checkpoint.py', path, tmp_path / 'out.pth', '--to', 'unilm', '--trust-checkpoint'
    )
    assert code == 1  # there are no weights in it
    assert 'runs whatever code it holds, with your rights' in out + err
    assert marker.exists()
    assert_mistake(call('tools/train.py', CLASSIFY, '--trust-checkpoint', *work_dir), 'and there is none')


@pytest.mark.slow
def test_reviving_dead_codes_keeps_more_of_them_in_use():
    """64 codes, nothing that balances them: 17 are in use after 800 steps, 33 if the dead ones are revived (seed 1)."""
    view, used = views(64), []
    for revive in (False, True):
        torch.manual_seed(1)
        model = DiscreteVAE(**{**SMALL, 'vocab_size': 64}, temperature=(1.0, 0.1, 400), balance_weight=0.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(1, 801):
            optimizer.param_groups[0]['lr'] = 3e-3 * min(1.0, (801 - step) / 300)
            losses = model.loss(view)
            optimizer.zero_grad()
            sum(value for key, value in losses.items() if 'loss' in key).backward()
            optimizer.step()
            if revive and step % 50 == 0 and step <= 500:
                dead = model.code_counts < 0.01 * model.code_counts.mean()
                model.code_counts.zero_()
                for parameter in model.revive(dead, view, torch.Generator().manual_seed(step))[0]:
                    for moment in ('exp_avg', 'exp_avg_sq'):
                        optimizer.state[parameter][moment][dead] = 0
        used.append(len(model.tokens(view).unique()))
    assert used[1] >= 1.3 * used[0], used


SEGMENT = 'configs/segmentation/beit-mini-p8_setr-pup-scratch_1xb32-60_scenes-64.py'


@pytest.mark.slow
def test_segmentation_by_the_commands_of_ade20k(tmp_path):
    """Export, check, train on two processes, test over scales, predict; then spoil a mask."""
    data, work = tmp_path / 'scenes', tmp_path / 'w'
    code, out, err = call('tools/prepare_data.py', 'export', data, '--format', 'ade20k', '--train', 70, '--val', 4)
    assert code == 0, err
    options = [f'{name}_dataloader.dataset.data_root={data}' for name in ('train', 'val', 'test')]
    options += ['train_cfg.max_iters=3', 'train_cfg.val_interval=3', 'train_dataloader.batch_size=4', 'sync_bn=torch']
    code, out, err = call('tools/prepare_data.py', 'verify', data, '--format', 'ade20k', '--partial')
    assert (code, 'no problem found' in out) == (0, True), out
    command = [*TORCHRUN, 'tools/train.py', SEGMENT, '--work-dir', work, '--launcher', 'pytorch', '--amp']
    code, out, err = call(*command, '--cfg-options', *options)
    assert code == 0, err[-3000:]  # no parameter is unused, or DDP stops in the second step
    assert out.count('norms are not synchronised over ranks: that needs CUDA') == 1
    weights = work / 'iter_3.pth'
    overrides = ['--work-dir', work, '--cfg-options', *options]
    shown, masks = tmp_path / 'shown', tmp_path / 'masks'
    code, single, err = call('tools/test.py', SEGMENT, weights, '--show-dir', shown, *overrides)
    assert code == 0, err
    code, several, err = call('tools/test.py', SEGMENT, weights, '--tta', '--record', tmp_path / 'r', *overrides)
    assert code == 0, err
    assert 'SETR-PUP, from scratch, multi-scale and flip' in next((tmp_path / 'r').rglob('*.json')).read_text()
    for said in (single, several):
        assert 'mIoU' in said
        assert 'per class, in percent:' in said
    ranks = [*TORCHRUN, 'tools/test.py', SEGMENT, weights, '--launcher', 'pytorch', '--record', tmp_path / 'r2']
    code, out, err = call(*ranks, '--out', tmp_path / 'two.json', *overrides)
    assert code == 0, err[-3000:]
    (record,) = (tmp_path / 'r2').rglob('*.json')  # of two ranks one writes
    assert f'mIoU  {json.loads((tmp_path / "two.json").read_text())["mIoU"]:.4f}' in single
    assert json.loads(record.read_text())['value'] == json.loads((tmp_path / 'two.json').read_text())['mIoU']
    images = data / 'images' / 'validation'
    code, out, err = call('tools/test.py', SEGMENT, weights, '--images', images, '--out', masks, '--tta', *overrides)
    assert code == 0, err
    assert len(list(masks.glob('*.png'))) == len(list(shown.glob('*.png'))) == 4
    spoilt = sorted((data / 'annotations' / 'training').iterdir())[3]
    spoilt.write_bytes(next(images.iterdir()).read_bytes())
    returned = call('tools/train.py', SEGMENT, '--work-dir', tmp_path / 'b', '--cfg-options', *options)
    assert_mistake(returned, f'{spoilt}: is a picture of 3 bands', 'do:')
    assert not list((tmp_path / 'b').glob('*.pth'))
