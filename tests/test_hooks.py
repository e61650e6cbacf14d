"""engine/hooks.py: dead codes are reported and revived; an averaged tokenizer is what a pre-training loads."""

import logging
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from test_dvae import SMALL, views

from beit_mm.checkpoints.load import read
from beit_mm.data.preprocess import MIMDataPreprocessor
from beit_mm.engine.configs import load_config
from beit_mm.engine.hooks import DeadCodesHook, ProgressHook
from beit_mm.engine.launch import prepare, run
from beit_mm.models import DiscreteVAE, KMeansTokenizer, TokenTarget
from beit_mm.ops.pixels import unmap_pixels

TOKENIZER = 'configs/tokenizer/dvae-512_1xb64-300_embedded-32.py'
TINY = {
    'train_cfg.max_iters': 4,
    'train_dataloader.batch_size': 4,
    'train_dataloader.dataset.length': 8,
    'val_dataloader': None,
    'val_cfg': None,
    'val_evaluator': None,
    'model.vocab_size': 16,
    'model.hidden_dims': 8,
    'model.code_dims': 8,
    'custom_hooks.0.num_images': 8,
    'visualizer.vis_backends': [{'type': 'LocalVisBackend'}],
}


def fake_runner(model):
    """Adam has seen a step, and its moments are not zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = model.loss(views(8))
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    optimizer.step()
    return SimpleNamespace(
        model=model, iter=9, logger=logging.getLogger('dead codes'), optim_wrapper=SimpleNamespace(optimizer=optimizer)
    )


def tokenizer():
    model = DiscreteVAE(**SMALL)
    model.data_preprocessor = MIMDataPreprocessor(mean=[0.0], std=[1.0])
    model.to_logits.bias.data[5:] = -1e4
    torch.nn.init.normal_(model.to_logits.weight)
    return model


BATCH = dict(tokens_view=(unmap_pixels(views(8)) * 255).round())


def test_dead_codes_are_revived_and_their_moments_forgotten(caplog):
    model = tokenizer()
    runner = fake_runner(model)
    chosen = model.code_counts.clone()
    dead = chosen == 0
    before = model.to_logits.weight.clone()
    with caplog.at_level(logging.INFO, logger='dead codes'):
        DeadCodesHook(interval=10).after_train_iter(runner, 9, BATCH)
    used, gone = int((chosen > 0).sum()), int(dead.sum())
    changed = (model.to_logits.weight != before).any(dim=1)
    assert changed.any()
    assert not changed[~dead].any()
    assert caplog.messages == [
        f'{used} of 32 codes were used in 10 steps; {int(changed.sum())} of {gone} dead ones revived'
    ]
    state = runner.optim_wrapper.optimizer.state
    for parameter in (model.to_logits.weight, model.codebook.weight):
        assert (state[parameter]['exp_avg'][changed] == 0).all()
        assert (state[parameter]['exp_avg'][~dead] != 0).any()
    assert (model.code_counts == 0).all()


@pytest.mark.parametrize('arguments', [dict(revive=False), dict(end=9)])
def test_dead_codes_are_only_reported(caplog, arguments):
    model = tokenizer()
    runner = fake_runner(model)
    before = {key: value.clone() for key, value in model.named_parameters()}
    with caplog.at_level(logging.INFO, logger='dead codes'):
        DeadCodesHook(interval=10, **arguments).after_train_iter(runner, 9, BATCH)
        DeadCodesHook(interval=7, **arguments).after_train_iter(runner, 9, BATCH)  # not yet
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith('are dead')
    assert all(torch.equal(value, before[key]) for key, value in model.named_parameters())


def test_mistakes():
    with pytest.raises(ValueError, match='KMeansTokenizer counts no codes; a DiscreteVAE does'):
        DeadCodesHook().before_train(SimpleNamespace(model=KMeansTokenizer(vocab_size=4)))
    with pytest.raises(ValueError, match=r'interval=0 must be 1 or more'):
        DeadCodesHook(interval=0)
    with pytest.raises(ValueError, match=r'threshold=1.5 a share'):
        DeadCodesHook(threshold=1.5)


class Recorder(Hook):
    def __init__(self):
        self.weights = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.weights.append({key: value.clone() for key, value in runner.model.named_parameters()})


def test_an_averaged_tokenizer_is_what_is_saved_and_loaded(tmp_path):
    """DALL-E's exponential average: state_dict of the checkpoint holds it, and so does a TokenTarget."""
    config = load_config(TOKENIZER, {**TINY, 'custom_hooks.0.num_images': 8})
    recorder = Recorder()
    config.custom_hooks = [*config.custom_hooks, dict(type='EMAHook', momentum=0.25)]
    runner = Runner.from_cfg(prepare(config, work_dir=str(tmp_path), seed=0))
    runner.register_hook(recorder, priority='VERY_HIGH')
    runner.train()
    average = recorder.weights[0]
    for weights in recorder.weights[1:]:
        average = {key: 0.75 * value + 0.25 * weights[key] for key, value in average.items()}
    saved = read(tmp_path / 'iter_4.pth')
    target = TokenTarget(Config(config.model).to_dict(), str(tmp_path / 'iter_4.pth'))
    for key, value in average.items():
        torch.testing.assert_close(saved['state_dict'][key], value, atol=1e-6, rtol=1e-5)
        assert torch.equal(target.tokenizer.state_dict()[key], saved['state_dict'][key])
    assert any((average[key] - recorder.weights[-1][key]).abs().max() > 1e-5 for key in average)
    resumed = load_config(TOKENIZER, {**TINY, 'train_cfg.max_iters': 5})
    resumed.custom_hooks = config.custom_hooks
    assert run(resumed, work_dir=str(tmp_path), resume='auto', seed=0).iter == 5


def test_a_terminal_gets_a_bar_without_torchs_warning(monkeypatch, capsys):
    """Open MPI gives its first process a terminal, whatever its own output goes to: no bar there."""
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    runner = SimpleNamespace(logger=logging.getLogger('bar'), max_iters=3, iter=0, experiment_name='name')
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(action='error'):
            hook = ProgressHook()
            hook.before_train(runner)
            hook.after_train_iter(runner, 0, outputs=dict(loss=torch.tensor(1.25, requires_grad=True)))
            assert hook.bar.tasks[0].fields['scalars'] == 'loss 1.250'
            hook.close()
    finally:
        torch.set_warn_always(False)
    monkeypatch.setenv('OMPI_COMM_WORLD_RANK', '0')
    hook.before_train(runner)
    assert hook.bar is None
