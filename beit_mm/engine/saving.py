"""Saving the checkpoints of a run: the new one is whole before an old one goes, and none holds a value that is not
finite."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.runner import Runner

from ..checkpoints.convert import few
from ..checkpoints.files import FOLDER, remove
from ..checkpoints.load import CheckpointError
from ..checkpoints.sharded import on_all_ranks
from ..checkpoints.store import TRAINING, abandon, entries, newest_verified, point_to
from ..registry import HOOKS
from .accumulation import has_updated
from .checkpointing import PlainCheckpointHook, model_of
from .finite import not_finite
from .loops import VALIDATED
from .sharding import is_sharded
from .workers import RankError, lost_workers_later


def with_our_checkpoints(config: Config) -> None:
    """Put our CheckpointHook where the config has mmengine's, or none; it then saves when it is asked to."""
    config.setdefault('default_hooks', {})
    hooks = config.default_hooks
    hook = hooks.get('checkpoint', {})
    if hook is None:
        hook = dict(interval=-1, save_last=False)
    if hook.get('type', 'CheckpointHook') in ('CheckpointHook', 'mmengine.CheckpointHook', MMEngineCheckpointHook):
        hooks['checkpoint'] = dict(hook, type='beit_mm.CheckpointHook')


def save_now(runner: Runner, step: int) -> Path:
    """Between two steps, on all ranks: the checkpoint `iter_{step}.pth`, of a sharded model `.dcp`, of the state after
    `step` steps, unless there is one. Returns its path."""
    hook = next(hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
    return hook.save_at(runner, step)


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's, which deletes an old checkpoint before it writes the new one, and believes paths of another folder.

    max_keep_ckpts counts this run's files, whichever names they have. An error on the first rank is all ranks' error.
    Of a sharded model all ranks write a folder together, `iter_100.dcp`. full=True gathers one file, `iter_100.pth`, on
    the first rank instead, as is done for the best weights: any strategy reads both.
    What is due between the batches of one step, whose gradients no checkpoint has, is written after the last of them;
    at the end of an epoch, and where a signal ends a validation, it is not put off, and a warning says what is lost.
    """

    def __init__(self, full: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.full = full
        self.written: tuple[int, Path] | None = None  # step, file
        self.due = False  # after this step
        self.constants: set[str] = set()  # buffers that are not finite by intention, such as masks of -inf

    def before_train(self, runner: Runner) -> None:
        if is_sharded(runner.model) and not self.full:
            self.filename_tmpl = str(Path(self.filename_tmpl).with_suffix(FOLDER))
        infos = runner.message_hub.runtime_info
        infos.pop('keep_ckpt_ids', None)  # the manifest knows better which files are there
        super().before_train(runner)
        for key, path in list(infos.items()):
            if path and (key in ('last_ckpt', 'best_ckpt') or key.startswith('best_ckpt_')):
                infos[key] = str(Path(self.out_dir) / Path(path).name)  # the folder may have been moved
        if self.save_best is not None and len(self.key_indicators) == 1:
            self.best_ckpt_path = infos.get('best_ckpt')
        elif self.save_best is not None:
            self.best_ckpt_path_dict = {key: infos.get(f'best_ckpt_{key}') for key in self.key_indicators}
        model = model_of(runner)
        parameters = dict(model.named_parameters())
        self.constants = {name for name in not_finite(model.state_dict()) if name not in parameters}
        steps = all_gather_object(runner.iter)
        if len(set(steps)) > 1:
            raise CheckpointError(
                f'{runner.work_dir}: the ranks go on from different steps ({few(list(map(str, steps)), 4)}): do all '
                f'machines see the same folder?'
            )
        if not is_main_process():
            return
        run = _run_of(runner)
        if gone := abandon(Path(self.out_dir), run, runner.iter) if run else []:
            runner.logger.warning(
                f'{self.out_dir}: this run goes on from step {runner.iter}. What it had written of later steps is '
                f'taken by `--resume` no more: {few(gone, 4)}'
            )

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.by_epoch:
            return
        last = self.is_last_train_iter(runner)
        reached = self.every_n_train_iters(runner, self.interval, self.save_begin)
        self.due = self.due or reached or (self.save_last and last)
        if self.due and (last or has_updated(runner.optim_wrapper)):
            runner.logger.info(f'Saving checkpoint at {runner.iter + 1} iterations')
            self._save_checkpoint(runner)
            self.due = False

    def save_at(self, runner: Runner, step: int) -> Path:
        """The checkpoint of this step; see save_now."""
        if self.written is None or self.written[0] != step:
            runner.logger.info(f'Saving checkpoint at {step} iterations')
            self._save(runner, f'iter_{step}{Path(self.filename_tmpl).suffix}', dict(epoch=runner.epoch, iter=step))
        return self.written[1]

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        self._save(runner, self.filename_tmpl.format(step), meta)

    def _save(self, runner: Runner, name: str, meta: dict) -> None:
        """Write one to go on from, point to it, and delete those of this run that are too many."""
        if not has_updated(runner.optim_wrapper):
            runner.logger.warning(
                f'{name}: of the batches of a step whose gradients are accumulated, those before the checkpoint are '
                f'lost to a run that goes on from it: the others make up the step'
            )
        path = Path(self.out_dir) / name
        surplus = self._surplus(name, _run_of(runner)) if is_main_process() else []
        self.last_ckpt = str(path)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._write(runner, name, meta)
        self.written = (meta['iter'], path)
        if is_main_process():
            _delete(runner, surplus)

    def _write(self, runner: Runner, name: str, meta: dict, best: bool = False) -> None:
        """best: weights alone, to which nothing points."""
        parts = dict(save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler, **self.args)
        if best:
            parts = dict(save_optimizer=False, save_param_scheduler=False)

        def write() -> None:
            runner.save_checkpoint(self.out_dir, name, meta=dict(meta), backend_args=self.backend_args, **parts)
            if not best and is_main_process():
                point_to(Path(runner.work_dir), Path(self.out_dir) / name)

        with lost_workers_later():
            (on_all_ranks if is_sharded(runner.model) else on_first_rank)(write)

    def _surplus(self, name: str, run: str) -> list[Path]:
        """Files of this run that go when `name` is there."""
        folder = Path(self.out_dir)
        if self.max_keep_ckpts <= 0:
            return []
        template = re.escape(self.filename_tmpl).replace(r'\{\}', r'\d+')
        ours = re.compile(f'{template}|{TRAINING.pattern}')
        written = dict.fromkeys(e.name for e in entries(folder) if e.run == run and not e.abandoned)
        old = [n for n in written if n != name and ours.fullmatch(n) and (folder / n).exists()]
        return [folder / n for n in old[: max(0, len(old) + 1 - self.max_keep_ckpts)]]

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        if 'auto' in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        step, unit = (runner.epoch, 'epoch') if self.by_epoch else (runner.iter, 'iter')
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        hub, outdated, updated = runner.message_hub, [], False
        for key, rule in zip(self.key_indicators, self.rules):
            suffix = f'_{key}' if len(self.key_indicators) > 1 else ''
            best = hub.runtime_info.get(f'best_score{suffix}', self.init_value_map[rule])
            if metrics[key] is None or not self.is_better_than[key](metrics[key], best):
                continue
            updated = True
            name = Path(f'best_{key}_{self.filename_tmpl.format(step)}'.replace('/', '_')).with_suffix('.pth').name
            path, before = Path(self.out_dir) / name, hub.runtime_info.get(f'best_ckpt{suffix}')
            hub.update_info(f'best_score{suffix}', metrics[key])
            hub.update_info(f'best_ckpt{suffix}', str(path))
            if suffix:
                self.best_ckpt_path_dict[key] = str(path)
            else:
                self.best_ckpt_path = str(path)
            self._write(runner, name, meta, best=True)
            runner.logger.info(
                f'The best checkpoint with {metrics[key]:0.4f} {key} at {step} {unit} is saved to {name}.'
            )
            if before and Path(before) != path:
                outdated.append(Path(before))
        hub.update_info(VALIDATED, runner.iter)
        if updated and self.last_ckpt is not None:  # it says which is the best
            if self.by_epoch or has_updated(runner.optim_wrapper):
                self._save_checkpoint_with_step(runner, step, meta)
            else:
                self.due = True
        if is_main_process():
            _delete(runner, outdated)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Raise CheckpointError for a weight, an average or an optimizer's state that is not finite."""
        found = [name for name in not_finite(checkpoint.get('state_dict', {})) if name not in self.constants]
        for part in ('ema_state_dict', 'optimizer'):
            found += [name for name in not_finite(checkpoint.get(part, {}), part) if name not in self._averaged()]
        if is_sharded(runner.model):
            found = list(dict.fromkeys(name for here in all_gather_object(found) for name in here))
        if found:
            newest = newest_verified(Path(self.out_dir), quiet=True)
            kept = f'The newest whole checkpoint stays: {newest}' if newest else 'There is none from before'
            raise CheckpointError(
                f'step {checkpoint["meta"]["iter"]}: not saved: {len(found)} tensors hold values that are not finite '
                f'(NaN or inf): {few(found, 4)}. {kept}. A lower learning rate, or clip_grad, may keep a run finite'
            )

    def _averaged(self) -> set[str]:
        """The names that `constants` have among the averages."""
        return {f'ema_state_dict.{prefix}{name}' for name in self.constants for prefix in ('', 'module.')}


def on_first_rank(do: Callable[[], object]) -> None:
    """Do it on the first rank, while the others wait; what it raises, all raise."""
    error = None
    if is_main_process():
        try:
            do()
        except Exception as raised:
            error = raised
    failed = [error is not None]
    broadcast_object_list(failed)
    if error is not None:
        raise error
    if failed[0]:
        raise RankError('not saved; the first rank says why')


def _run_of(runner: Runner) -> str:
    return next((hook.run for hook in runner.hooks if isinstance(hook, PlainCheckpointHook)), '')


def _delete(runner: Runner, paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            remove(path)
        except OSError as error:
            runner.logger.warning(f'{path}: cannot be deleted ({error.strerror}); it stays, and the run goes on')
