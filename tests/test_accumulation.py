"""engine/accumulation.py: a step in parts is the step in one, whatever the masks."""

import copy

import pytest
import torch
from mmengine.optim import OptimWrapper as MMEngineOptimWrapper

from beit_mm.engine.accumulation import OptimWrapper
from beit_mm.engine.amp import AmpOptimWrapper
from beit_mm.models import MaskedImageModel

MODEL = dict(
    backbone=dict(
        type='beit_mm.BEiTViT', arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
        img_size=32, patch_size=8, in_channels=1, variant='beit_plus', out_type='raw', final_norm=True,
        with_mask_token=True,
    ),
    target=dict(
        type='beit_mm.TokenTarget',
        tokenizer=dict(
            type='beit_mm.DiscreteVAE', vocab_size=16, in_channels=1, num_downsamples=2, hidden_dims=8, code_dims=8,
            num_res_blocks=1,
        ),
    ),
    head=dict(type='beit_mm.TokenHead', embed_dims=32, vocab_size=16),
)  # fmt: skip


def ragged(counts):
    """One image per count, with so many of 16 patches masked."""
    mask = torch.zeros(len(counts), 16, dtype=torch.bool)
    for row, count in zip(mask, counts, strict=True):
        row[torch.randperm(16)[:count]] = True
    return dict(
        patches=torch.randn(len(counts), 1, 32, 32),
        tokens=torch.randint(16, (len(counts), 4, 4)),
        mask=mask.view(-1, 4, 4),
    )


def part(batch, images):
    return {key: value[images] for key, value in batch.items()}


def trained(model, batches, parts, wrapper=OptimWrapper):
    """The model after one optimizer step per batch of `batches`, each in `parts`; and the gradient norms seen."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    optim_wrapper = wrapper(optimizer=optimizer, accumulative_counts=len(parts), clip_grad=dict(max_norm=0.05))
    optim_wrapper.initialize_count_status(model, 0, len(parts) * len(batches))
    for batch in batches:
        for images in parts:
            model.train_step(part(batch, images), optim_wrapper)
    return model.state_dict()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MaskedImageModel(**MODEL)


PARTS = [slice(0, 2), slice(2, 3), slice(3, 4)]


def test_a_step_in_parts_is_the_step_in_one(model):
    """Counts 1 + 2, 12 and 5; clipped, with momentum, twice."""
    batches = [ragged([1, 2, 12, 5]), ragged([3, 3, 1, 0])]
    whole = trained(model, batches, [slice(0, 4)])
    for key, value in trained(model, batches, PARTS).items():
        torch.testing.assert_close(value, whole[key], atol=1e-6, rtol=1e-5, msg=key)


def test_mmengine_weighs_the_parts_alike(model):
    """The reason for the wrapper: with theirs, a patch of a sparse mask counts several times as much."""
    batches = [ragged([1, 2, 12, 5])]
    whole, parts = trained(model, batches, [slice(0, 4)]), trained(model, batches, PARTS, MMEngineOptimWrapper)
    start = model.state_dict()
    step = torch.cat([(whole[k] - start[k]).flatten() for k in start])
    other = torch.cat([(parts[k] - start[k]).flatten() for k in start])
    assert (step - other).norm() > 0.2 * step.norm()


def test_no_masked_patch_at_all_changes_nothing(model):
    start = copy.deepcopy(model.state_dict())
    for key, value in trained(model, [ragged([0, 0, 0, 0])], PARTS).items():
        assert torch.equal(value, start[key])


def test_bf16_too(model):
    batches = [ragged([1, 2, 12, 5])]
    whole = trained(model, batches, [slice(0, 4)], AmpOptimWrapper)
    start = model.state_dict()
    parts = trained(model, batches, PARTS, AmpOptimWrapper)
    step = torch.cat([(whole[k] - start[k]).flatten() for k in start])
    other = torch.cat([(parts[k] - start[k]).flatten() for k in start])
    assert (step - other).norm() < 0.02 * step.norm()


def test_other_losses_are_as_in_mmengine():
    """A loss without a count: the mean of the parts."""
    weights = []
    for wrapper in (OptimWrapper, MMEngineOptimWrapper):
        torch.manual_seed(0)
        linear = torch.nn.Linear(3, 1)
        optim_wrapper = wrapper(optimizer=torch.optim.SGD(linear.parameters(), lr=0.1), accumulative_counts=2)
        optim_wrapper.initialize_count_status(linear, 0, 4)
        for _ in range(4):
            optim_wrapper.update_params(linear(torch.randn(5, 3)).square().mean())
        weights.append(linear.weight.detach())
    assert torch.equal(*weights)
