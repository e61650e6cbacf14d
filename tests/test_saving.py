"""engine/saving.py: the new checkpoint is whole before an old one goes; none holds what is not finite."""

import contextlib
import itertools
import logging
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook as MMEngines
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from beit_mm.checkpoints import store
from beit_mm.checkpoints.load import CheckpointError, read
from beit_mm.checkpoints.store import entries, newest_verified, verify
from beit_mm.engine import saving
from beit_mm.engine.checkpointing import PlainCheckpointHook
from beit_mm.engine.finite import not_finite
from beit_mm.engine.saving import CheckpointHook, on_first_rank, save_now, with_our_checkpoints

COUNT = itertools.count()


class Line(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 1)
        self.register_buffer('mask', torch.tensor([0.0, -math.inf]))

    def forward(self, inputs, mode='tensor'):
        out = self.line(torch.stack(list(inputs)))
        return dict(loss=out.square().mean()) if mode == 'loss' else [out]


class Scores(BaseMetric):
    """Hands out scores one after the other."""

    def __init__(self, **scores) -> None:
        super().__init__()
        self.scores, self.asked = scores, 0

    def process(self, data_batch, data_samples) -> None:
        self.results.append(0)

    def compute_metrics(self, results) -> dict:
        self.asked += 1
        return {name: values[self.asked - 1] for name, values in self.scores.items()}


def runner(
    work_dir: Path, steps: int = 4, epochs: int = 0, scores: dict | None = None, hooks=(), parts: int = 1, **options
) -> Runner:
    """Of a line on 4 samples, one a batch, `parts` of them a step. options: of our CheckpointHook, or `checkpoint`."""
    data = dict(dataset=[torch.ones(2)] * 4, sampler=dict(type='DefaultSampler', shuffle=False), batch_size=1)
    loop = dict(by_epoch=True, max_epochs=epochs) if epochs else dict(by_epoch=False, max_iters=steps, val_interval=1)
    checkpoint = options.pop('checkpoint', None) or dict(
        type='beit_mm.CheckpointHook', **{'by_epoch': bool(epochs), 'interval': 1, **options}
    )
    validation = {}
    if scores:
        validation = dict(val_dataloader=data, val_cfg=dict(), val_evaluator=[Scores(**scores)])
    return Runner(
        Line(),
        str(work_dir),
        train_dataloader=data,
        train_cfg=loop,
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.1), accumulative_counts=parts),
        default_hooks=dict(checkpoint=checkpoint, logger=None),
        custom_hooks=[*hooks, dict(type='beit_mm.PlainCheckpointHook')],
        experiment_name=f'saving{next(COUNT)}',
        log_level='WARNING',
        randomness=dict(seed=0),
        **validation,
    )


def resumed(work_dir: Path, **options) -> Runner:
    made = runner(work_dir, **options)
    made._resume, made._load_from = True, str(newest_verified(work_dir))
    return made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*.pth'))


def run_of(made: Runner) -> str:
    return next(hook.run for hook in made.hooks if isinstance(hook, PlainCheckpointHook))


@pytest.mark.parametrize(('most', 'left'), [(-1, [1, 2, 3, 4]), (1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_as_many_as_are_kept(tmp_path, most, left):
    made = runner(tmp_path, max_keep_ckpts=most)
    made.train()
    assert names(tmp_path) == [f'iter_{step}.pth' for step in left]
    assert {entry.run for entry in entries(tmp_path)} == {run_of(made)}
    content = read(tmp_path / 'iter_4.pth')
    assert content['meta']['beit_mm']['run'] == run_of(made)
    assert (content['meta']['iter'], content['meta']['epoch']) == (4, 0)
    assert (tmp_path / 'last_checkpoint').read_text() == 'iter_4.pth'


def test_an_old_one_goes_when_the_new_one_is_whole(tmp_path, monkeypatch):
    seen = []

    def delete(made, paths):
        paths = list(paths)
        seen.append((newest_verified(tmp_path).name, [path.name for path in paths], names(tmp_path)))
        original(made, paths)

    original = saving._delete
    monkeypatch.setattr(saving, '_delete', delete)
    runner(tmp_path, steps=3, max_keep_ckpts=1).train()
    assert seen == [
        ('iter_1.pth', [], ['iter_1.pth']),
        ('iter_2.pth', ['iter_1.pth'], ['iter_1.pth', 'iter_2.pth']),
        ('iter_3.pth', ['iter_2.pth'], ['iter_2.pth', 'iter_3.pth']),
    ]


def test_what_a_kill_left_too_many_goes_with_the_next(tmp_path):
    """Killed between the writing and the deletion; also in a work_dir that was moved meanwhile."""
    runner(tmp_path / 'a', steps=3).train()
    (tmp_path / 'a').rename(tmp_path / 'b')
    made = resumed(tmp_path / 'b', steps=4, max_keep_ckpts=2)
    made.train()
    assert names(tmp_path / 'b') == ['iter_3.pth', 'iter_4.pth']
    assert not (tmp_path / 'a').exists()
    assert made.message_hub.get_info('last_ckpt') == f'{tmp_path}/b/iter_4.pth'
    assert {entry.run for entry in entries(tmp_path / 'b')} == {run_of(made)}


def test_a_failed_delete_is_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Path, 'unlink', lambda path, missing_ok=False: exec('raise PermissionError(13, "no")'))
    made = runner(tmp_path, steps=1)
    with caplog.at_level(logging.WARNING):
        made.logger.addHandler(caplog.handler)
        saving._delete(made, [tmp_path / 'iter_1.pth'])
    assert caplog.messages == [f'{tmp_path}/iter_1.pth: cannot be deleted (no); it stays, and the run goes on']


def test_the_best_one_is_kept_until_a_better_one_is_whole(tmp_path, monkeypatch):
    seen = []
    original = saving._delete
    monkeypatch.setattr(saving, '_delete', lambda made, paths: seen.extend(paths) or original(made, paths))
    scores = dict(acc=[0.2, 0.5, 0.4, 0.6])
    made = runner(tmp_path, scores=scores, save_best='acc', interval=10)
    made.train()
    assert names(tmp_path) == ['best_acc_iter_4.pth', 'iter_4.pth']
    assert [path.name for path in seen] == ['best_acc_iter_1.pth', 'best_acc_iter_2.pth']
    content = read(tmp_path / 'iter_4.pth')
    assert content['message_hub']['runtime_info']['best_score'] == 0.6
    assert content['message_hub']['runtime_info']['best_ckpt'] == f'{tmp_path}/best_acc_iter_4.pth'
    assert set(read(tmp_path / 'best_acc_iter_4.pth')) == {'meta', 'state_dict', 'message_hub'}
    assert newest_verified(tmp_path).name == 'iter_4.pth'


def test_the_best_ones_of_a_copied_work_dir(tmp_path):
    """mmengine goes on with the paths of the old place: it deletes the old place's best."""
    scores = dict(acc=[0.2], loss=[0.5])
    runner(tmp_path / 'a', steps=1, scores=scores, save_best=['acc', 'loss']).train()
    shutil.copytree(tmp_path / 'a', tmp_path / 'b')
    scores = dict(acc=[0.1, 0.3], loss=[0.4, 0.6])
    made = resumed(tmp_path / 'b', steps=3, scores=scores, save_best=['acc', 'loss'], max_keep_ckpts=1)
    made.train()
    assert names(tmp_path / 'a') == ['best_acc_iter_1.pth', 'best_loss_iter_1.pth', 'iter_1.pth']
    assert names(tmp_path / 'b') == ['best_acc_iter_3.pth', 'best_loss_iter_2.pth', 'iter_3.pth']


def test_epochs_and_a_checkpoint_in_the_middle_of_one(tmp_path):
    """`save_now` writes iter_N.pth whatever the hook's names are; it counts, and a step is not written twice."""
    written = []

    class Now(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, made, batch_idx, data_batch=None, outputs=None) -> None:
            if made.iter + 1 == 6:
                made.train_loop._iter += 1  # between two steps
                written.append(save_now(made, 6))
                before = written[0].stat().st_mtime_ns
                assert save_now(made, 6) == written[0]
                assert written[0].stat().st_mtime_ns == before
                made.train_loop._iter -= 1

    made = runner(tmp_path, epochs=2, max_keep_ckpts=2, hooks=[Now()])
    made.train()
    assert written == [tmp_path / 'iter_6.pth']
    meta = read(tmp_path / 'iter_6.pth')['meta']
    assert (meta['iter'], meta['epoch']) == (6, 1)
    assert names(tmp_path) == ['epoch_2.pth', 'iter_6.pth']
    assert newest_verified(tmp_path).name == 'epoch_2.pth'
    hook = next(hook for hook in made.hooks if isinstance(hook, CheckpointHook))
    assert hook.written == (8, tmp_path / 'epoch_2.pth')
    assert save_now(made, 8) == tmp_path / 'epoch_2.pth'
    assert names(tmp_path) == ['epoch_2.pth', 'iter_6.pth']


@pytest.mark.parametrize(
    ('steps', 'interval', 'left'),
    [
        (8, 4, ['iter_6.pth', 'iter_8.pth']),
        (9, 3, ['iter_3.pth', 'iter_6.pth', 'iter_9.pth']),
        (7, 5, ['iter_6.pth', 'iter_7.pth']),
    ],
)
def test_accumulated_gradients_are_waited_for(tmp_path, capsys, steps, interval, left):
    """A checkpoint has no gradients: one that is due among the batches of a step is written after the last of them."""
    runner(tmp_path, steps=steps, interval=interval, parts=3).train()
    assert names(tmp_path) == left
    assert 'are lost to a run' not in capsys.readouterr().out


def test_the_best_among_the_batches_of_a_step(tmp_path):
    """The best weights are written at once, and the checkpoint that says which they are after the step."""
    best = dict(save_best='line', rule='greater', scores=dict(line=[1.0, 0.5, 2.0, 0.5]))
    runner(tmp_path, steps=4, parts=2, interval=2, **best).train()
    assert names(tmp_path) == ['best_line_iter_3.pth', 'iter_2.pth', 'iter_4.pth']
    info = read(tmp_path / 'iter_4.pth')['message_hub']['runtime_info']
    assert (info['best_score'], Path(info['best_ckpt']).name) == (2.0, 'best_line_iter_3.pth')


def test_an_epoch_that_ends_among_the_batches_of_a_step_says_so(tmp_path, capsys):
    runner(tmp_path, epochs=3, parts=3).train()  # of 4 batches
    assert names(tmp_path) == ['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth']
    assert re.findall(r'(\S+): .* are lost to a run', capsys.readouterr().out) == ['epoch_1.pth', 'epoch_2.pth']


def test_another_folder_for_checkpoints(tmp_path):
    runner(tmp_path / 'w', steps=2, out_dir=str(tmp_path / 'out'), max_keep_ckpts=1).train()
    assert names(tmp_path / 'out' / 'w') == ['iter_2.pth']
    assert (tmp_path / 'w' / 'last_checkpoint').read_text() == '../out/w/iter_2.pth'


class Spoil(Hook):
    """Makes a value infinite in the third step: of the weights, of the optimizer, or of the averages."""

    priority = 'LOW'

    def __init__(self, part: str) -> None:
        self.part = part

    def after_train_iter(self, made, batch_idx, data_batch=None, outputs=None) -> None:
        if made.iter + 1 != 3:
            return
        averages = next((h.ema_model.module for h in made.hooks if isinstance(h, EMAHook)), None)
        value = {
            'weights': made.model.line.weight,
            'optimizer': made.optim_wrapper.optimizer.state[made.model.line.weight]['exp_avg_sq'],
            'averages': averages and averages.line.weight,
        }[self.part]
        value.data[0, 1] = math.inf


@pytest.mark.parametrize(
    ('part', 'name'),
    [('weights', 'line.weight'), ('optimizer', 'optimizer.state.0.exp_avg_sq'), ('averages', 'line.weight')],
)
def test_a23_no_checkpoint_holds_what_is_not_finite(tmp_path, part, name):
    hooks = [Spoil(part), EMAHook()] if part == 'averages' else [Spoil(part)]
    made = runner(tmp_path, hooks=hooks, max_keep_ckpts=1)
    with pytest.raises(CheckpointError) as error:
        made.train()
    assert str(error.value) == (
        f'step 3: not saved: 1 tensors hold values that are not finite (NaN or inf): {name}. The newest whole '
        f'checkpoint stays: {tmp_path}/iter_2.pth. A lower learning rate, or clip_grad, may keep a run finite'
    )
    assert names(tmp_path) == ['iter_2.pth']
    verify(tmp_path / 'iter_2.pth')


def test_names_of_what_is_not_finite():
    bad = torch.tensor([1.0, math.nan])
    tree = dict(a=bad, b=[torch.ones(1), dict(c=bad.half())], d=torch.tensor([1]), e='x', f=bad.to(torch.bfloat16))
    tree.update(large=torch.full((9,), 3e38), largest=torch.tensor([65504.0] * 9).half(), complex=torch.ones(1) * 1j)
    tree.update(g=torch.empty(0), h=torch.tensor([-math.inf]), i=bad.to(torch.float8_e4m3fn))
    assert list(not_finite(tree)) == ['a', 'b.1.c', 'f', 'h', 'i']


@pytest.mark.parametrize(
    ('hook', 'put'),
    [
        (dict(type='CheckpointHook', interval=3), dict(type='beit_mm.CheckpointHook', interval=3)),
        (dict(interval=3), dict(type='beit_mm.CheckpointHook', interval=3)),
        (dict(type=MMEngines), dict(type='beit_mm.CheckpointHook')),
        (dict(type='their.Hook'), dict(type='their.Hook')),
        (None, dict(type='beit_mm.CheckpointHook', interval=-1, save_last=False)),
    ],
)
def test_it_takes_the_place_of_mmengines(hook, put):
    config = Config(dict(default_hooks=dict(checkpoint=hook)))
    with_our_checkpoints(config)
    assert config.default_hooks.checkpoint == put
    config = Config(dict())
    with_our_checkpoints(config)
    assert config.default_hooks.checkpoint == dict(type='beit_mm.CheckpointHook')


def test_mmengines_own_runner_and_hook_write_and_find_whole_files(tmp_path, monkeypatch):
    """In a project that only imports beit_mm: also the published file, and `resume=True` with a damaged newest."""
    theirs = dict(type='CheckpointHook', interval=1, by_epoch=False, published_keys=['meta', 'state_dict'])
    made = runner(tmp_path, steps=2, checkpoint=theirs)
    made.train()
    assert type(next(hook for hook in made.hooks if isinstance(hook, MMEngines))) is MMEngines
    assert [entry.resumable for entry in entries(tmp_path)] == [True, True, False]
    assert (tmp_path / 'last_checkpoint').read_text() == f'{tmp_path}/iter_2.pth'
    (tmp_path / 'iter_2.pth').write_bytes(b'')
    monkeypatch.setattr(store, 'print_log', lambda *_, **__: None)
    again = runner(tmp_path, steps=3, checkpoint=theirs)
    again._resume = True
    again.load_or_resume()
    assert again.iter == 1


@pytest.mark.parametrize('saved', [dict(save_optimizer=False), {}], ids=['without its optimizer', 'all are damaged'])
def test_mmengines_own_runner_never_begins_anew_without_a_word(tmp_path, monkeypatch, saved):
    theirs = dict(type='CheckpointHook', interval=1, by_epoch=False, **saved)
    runner(tmp_path, steps=1, checkpoint=theirs).train()
    if not saved:
        (tmp_path / 'iter_1.pth').write_bytes(b'')
    monkeypatch.setattr(store, 'print_log', lambda *_, **__: None)
    again = runner(tmp_path, steps=3, checkpoint=theirs)
    again._resume = True
    with contextlib.nullcontext() if saved else pytest.raises(CheckpointError, match=r'iter_1\.pth: the file is empty'):
        again.load_or_resume()
    assert again.iter == (1 if saved else 0)


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
    for fails, do in ((False, int), (True, lambda: os.close(-1))):
        try:
            on_first_rank(do)
            said = 'fine'
        except Exception as error:
            said = f'{type(error).__name__}: {error}'
        (Path(folder) / f'{rank}-{fails}').write_text(said)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_ranks_fail_when_the_first_cannot_save(tmp_path):
    mp.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method='fork')
    said = {path.name: path.read_text() for path in tmp_path.glob('?-*')}
    assert said == {
        '0-False': 'fine',
        '1-False': 'fine',
        '0-True': 'OSError: [Errno 9] Bad file descriptor',
        '1-True': 'RankError: not saved; the first rank says why',
    }


def test_forks_of_this_process_can_save(tmp_path):
    """The digest is made in a thread: nothing of it must be left in a child, which is how data workers start."""
    runner(tmp_path / 'a', steps=1).train()
    if (pid := os.fork()) == 0:
        try:
            store.save(read(tmp_path / 'a' / 'iter_1.pth'), tmp_path / 'iter_1.pth')
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    verify(tmp_path / 'iter_1.pth')


def test_all_ranks_go_on_from_one_step(tmp_path, monkeypatch):
    """Of several machines one may not see the others' disk."""
    monkeypatch.setattr(saving, 'all_gather_object', lambda step: [step, 8])
    with pytest.raises(CheckpointError) as error:
        runner(tmp_path).train()
    assert str(error.value) == (
        f'{tmp_path}: the ranks go on from different steps (0, 8): do all machines see the same folder?'
    )
