"""models/probe.py: frozen for real, heads that do not know of each other, k-NN as scikit-learn's and by hand."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmpretrain.structures import DataSample
from sklearn.neighbors import KNeighborsClassifier

from beit_mm.checkpoints.errors import CheckpointError
from beit_mm.engine.amp import AmpOptimWrapper
from beit_mm.models import BEiTViT, KNNProbe, LinearProbe
from beit_mm.models.probe import pooled, vote

ARCH = dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32)
BACKBONE = dict(
    type='beit_mm.BEiTViT', arch=ARCH, img_size=16, patch_size=8, in_channels=1, variant='beit_plus', out_type='raw',
    out_indices=(0, 1, 2), drop_path_rate=0.5, drop_rate=0.5,
)  # fmt: skip
CLASSES = 7


def linear(**changes):
    torch.manual_seed(1)
    return LinearProbe(**{'backbone': BACKBONE, 'num_classes': CLASSES, **changes})


def samples(labels):
    return [DataSample().set_gt_label(int(label)) for label in labels]


def batch(count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return dict(inputs=torch.randn(count, 1, 16, 16, generator=generator), data_samples=samples(labels)), labels


def train(probe, steps=5, constructor='beit_mm.LayerDecayOptimWrapperConstructor', wrapper='OptimWrapper'):
    optimizer = dict(type='AdamW', lr=4e-3, weight_decay=0.1)
    optim_wrapper = build_optim_wrapper(probe, dict(type=wrapper, constructor=constructor, optimizer=optimizer))
    probe.train()
    for step in range(steps):
        probe.train_step(batch(seed=step)[0], optim_wrapper)
    return optim_wrapper


def test_features_by_hand():
    """The official code's: class token first, then the mean of the patches, of the raw output of every block."""
    probe, (data, _) = linear(), batch()
    raw = probe.backbone.eval()(data['inputs'])
    for feature, tokens in zip(probe.extract(data['inputs']), raw, strict=True):
        expected = np.concatenate([tokens[:, 0].numpy(), tokens.numpy()[:, 1:].mean(axis=1)], axis=1)
        np.testing.assert_allclose(feature.numpy(), expected, atol=1e-6)
        assert torch.equal(pooled(tokens, 'cls'), tokens[:, 0])
        assert torch.equal(pooled(tokens, 'mean', 2), tokens[:, 2:].mean(dim=1))
    assert raw[2].std() > 0
    assert probe.backbone.ln1 is None  # no norm after the last block


@pytest.mark.parametrize(('features', 'width'), [('cls', 16), ('mean', 16), ('both', 32)])
def test_heads(features, width):
    probe = linear(features=features, num_classes=1000)
    assert len(probe.heads) == 3
    for head in probe.heads:
        assert head.weight.shape == (1000, width)
        assert head.weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert not head.bias.any()
    assert probe.candidates == (dict(block=1), dict(block=2), dict(block=3))


def test_loss_by_hand():
    probe, (data, labels) = linear(), batch()
    losses = probe(**data, mode='loss')
    assert list(losses) == ['loss_block1', 'loss_block2', 'loss_block3']
    for head, feature, loss in zip(probe.heads, probe.extract(data['inputs']), losses.values(), strict=True):
        logits = (feature @ head.weight.T + head.bias).detach().numpy().astype(np.float64)
        picked = logits[np.arange(8), labels]
        expected = (np.log(np.exp(logits).sum(axis=1)) - picked).mean()
        assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('batch_norm', [False, True])
def test_each_head_is_trained_as_if_alone(batch_norm):
    """Gradients, and weights after five steps of AdamW with weight decay."""
    together = linear(batch_norm=batch_norm).train()

    def alone(i):
        probe = linear(backbone=dict(BACKBONE, out_indices=(i,)), batch_norm=batch_norm)
        probe.backbone.load_state_dict(together.backbone.state_dict())
        probe.heads[0].load_state_dict(together.heads[i].state_dict())
        return probe.train()

    probes = [alone(i) for i in range(3)]
    sum(together(**batch()[0], mode='loss').values()).backward()
    for i, probe in enumerate(probes):
        probe(**batch()[0], mode='loss')[f'loss_block{i + 1}'].backward()
        assert torch.equal(probe.heads[0].weight.grad, together.heads[i].weight.grad)
        assert torch.equal(probe.heads[0].bias.grad, together.heads[i].bias.grad)
    for probe in (together, *probes):
        train(probe)
    for i, probe in enumerate(probes):
        assert torch.equal(probe.heads[0].weight, together.heads[i].weight)


@pytest.mark.parametrize('constructor', ['beit_mm.LayerDecayOptimWrapperConstructor', 'DefaultOptimWrapperConstructor'])
def test_the_backbone_is_bit_equal_after_training(constructor):
    probe = linear()
    before = copy.deepcopy(probe.state_dict())
    train(probe, constructor=constructor)
    for key, value in probe.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith('backbone.'), key
    assert all(parameter.grad is None for parameter in probe.backbone.parameters())


def test_the_backbone_is_in_no_group_and_always_in_eval_mode():
    probe = linear()
    groups = train(probe, 1).optimizer.param_groups
    learning = {id(parameter) for group in groups for parameter in group['params']}
    assert learning == {id(parameter) for parameter in probe.heads.parameters()}
    assert {group['weight_decay'] for group in groups} == {0.1, 0.0}
    assert probe.train() is probe
    assert probe.training
    assert all(head.training for head in probe.heads)
    assert not any(module.training for module in probe.backbone.modules())
    probe.init_weights()
    assert not any(parameter.requires_grad for parameter in probe.backbone.parameters())
    data, _ = batch()
    assert all(torch.equal(a, b) for a, b in zip(probe.extract(data['inputs']), probe.extract(data['inputs'])))


def test_batch_norm_as_maes():
    probe, (data, labels) = linear(batch_norm=True), batch(64)
    assert [tuple(norm.parameters()) for norm in probe.norms] == [()] * 3
    probe.train()
    losses = probe(**data, mode='loss')
    feature = probe.extract(data['inputs'])[1]
    normed = (feature - feature.mean(dim=0)) / (feature.var(dim=0, unbiased=False) + 1e-6).sqrt()
    assert losses['loss_block2'].item() == pytest.approx(F.cross_entropy(probe.heads[1](normed), labels).item(), 1e-5)


def test_bf16():
    """The backbone runs in bfloat16, the heads in float32, as in the official code."""
    probe, (data, _) = linear(), batch()
    exact = probe(**data, mode='loss')
    with torch.autocast('cpu', torch.bfloat16):
        losses = probe(**data, mode='loss')
        assert probe.scores(probe.extract(data['inputs'])).dtype == torch.float32
    for key, value in exact.items():
        assert losses[key] != value
        assert losses[key].item() == pytest.approx(value.item(), rel=1e-2)
    wrapper = train(probe, wrapper='beit_mm.AmpOptimWrapper')
    assert isinstance(wrapper, AmpOptimWrapper)
    assert isinstance(wrapper, OptimWrapper)
    assert all(torch.isfinite(parameter).all() for parameter in probe.parameters())


def test_prediction():
    probe, (data, labels) = linear(), batch()
    predicted = probe.eval()(**data, mode='predict')
    for i, sample in enumerate(predicted):
        assert sample['label'] == labels[i]
        assert sample['top'].shape == (3, 5)
        for block, head in enumerate(probe.heads):
            logits = head(probe.extract(data['inputs'])[block][i])
            assert sample['top'][block].tolist() == logits.argsort(descending=True)[:5].tolist()


def test_mmpretrains_vit_as_the_backbone():
    backbone = dict(
        type='mmpretrain.VisionTransformer', arch=ARCH, img_size=16, patch_size=8, in_channels=1, out_type='raw',
        out_indices=(0, 1, 2), final_norm=False,
    )  # fmt: skip
    probe = linear(backbone=backbone)
    before = copy.deepcopy(probe.backbone.state_dict())
    train(probe)
    assert all(torch.equal(value, before[key]) for key, value in probe.backbone.state_dict().items())
    assert not any(module.training for module in probe.backbone.modules())
    knn = KNNProbe(backbone, CLASSES, k=1)
    knn.load_state_dict(probe.state_dict())
    assert torch.equal(knn.backbone.cls_token, probe.backbone.cls_token)


def test_mistakes():
    with pytest.raises(ValueError, match="LinearProbe: the backbone's out_type is 'featmap'; set out_type='raw'"):
        linear(backbone=dict(BACKBONE, out_type='featmap'))
    with pytest.raises(ValueError, match="features='max' is none of cls, mean, both"):
        linear(features='max')
    with pytest.raises(NotImplementedError, match=r'KNNProbe learns nothing: evaluate it with tools/test\.py'):
        KNNProbe(BACKBONE, CLASSES)(**batch()[0], mode='loss')
    with pytest.raises(ValueError, match='its bank is empty'):
        KNNProbe(BACKBONE, CLASSES)(**batch()[0], mode='predict')
    with pytest.raises(ValueError, match=r'k=\(5, 0\) must be one or more positive'):
        KNNProbe(BACKBONE, CLASSES, k=(5, 0))
    with pytest.raises(ValueError, match='temperature=0 must be positive, or None'):
        KNNProbe(BACKBONE, CLASSES, temperature=0)
    with pytest.raises(ValueError, match="bank_dtype='int8' is neither float32 nor float16"):
        KNNProbe(BACKBONE, CLASSES, bank_dtype='int8')
    probe = KNNProbe(BACKBONE, CLASSES, k=9)
    probe.remember(**batch(8)[0])
    with pytest.raises(ValueError, match='k=9 neighbours of 8 images in the bank; lower k'):
        probe(**batch()[0], mode='predict')


@torch.no_grad()
def filled(**changes):
    probe = KNNProbe(**{'backbone': BACKBONE, 'num_classes': CLASSES, 'k': (1, 2, 5, 20), **changes}).eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in probe.backbone.parameters():  # at its start all class tokens are the same but for rounding
        parameter.normal_(std=0.3, generator=generator)
    bank = [batch(25, seed) for seed in (1, 2, 3)]
    for data, _ in bank:
        probe.remember(**data)
    return probe, torch.cat([data['inputs'] for data, _ in bank]), torch.cat([labels for _, labels in bank])


@pytest.mark.parametrize('features', ['cls', 'mean', 'both'])
def test_knn_equals_scikit_learn(features):
    """Plain votes, ties included (the lowest class wins there and here)."""
    probe, images, labels = filled(features=features, temperature=None)
    data, _ = batch(60, seed=9)
    tops = torch.stack([sample['top'][:, 0] for sample in probe(**data, mode='predict')], dim=1)
    expected = []
    for bank, query in zip(probe.extract(images), probe.extract(data['inputs']), strict=True):
        for k in (1, 2, 5, 20):
            theirs = KNeighborsClassifier(k, metric='cosine', weights='uniform').fit(bank.numpy(), labels.numpy())
            expected.append(theirs.predict(query.numpy()))
    np.testing.assert_array_equal(tops.numpy(), np.stack(expected))
    assert probe.candidates[5] == dict(block=2, k=2)


@pytest.mark.parametrize('bank_dtype', ['float32', 'float16'])
def test_weighted_votes_by_hand(bank_dtype):
    probe, images, labels = filled(bank_dtype=bank_dtype)
    data, _ = batch(6, seed=9)
    scores = probe.scores(probe.extract(data['inputs']))
    assert scores.shape == (12, 6, CLASSES)
    for block, (bank, query) in enumerate(zip(probe.extract(images), probe.extract(data['inputs']), strict=True)):
        bank, query = bank.double().numpy(), query.double().numpy()
        for i in range(6):
            cosine = bank @ query[i] / np.linalg.norm(bank, axis=1) / np.linalg.norm(query[i])
            for j, k in enumerate((1, 2, 5, 20)):
                votes = np.zeros(CLASSES)
                for nearest in np.argsort(-cosine)[:k]:
                    votes[labels[nearest]] += np.exp(cosine[nearest] / 0.07)
                tolerance = 1e-4 if bank_dtype == 'float32' else 0.05
                np.testing.assert_allclose(scores[4 * block + j, i], votes, rtol=tolerance)


def test_votes():
    similarities, labels = torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[2, 0, 0]])
    assert vote(similarities, labels, 3, 4, None).tolist() == [[2, 0, 1, 0]]
    weights = np.exp(np.array([0.9, 0.8, 0.7]) / 0.07)
    np.testing.assert_allclose(vote(similarities, labels, 3, 4, 0.07)[0], [weights[1:].sum(), 0, weights[0], 0], 1e-5)
    assert vote(similarities, labels, 1, 4, None).tolist() == [[0, 0, 1, 0]]


def test_the_bank_is_not_in_the_checkpoint_and_can_be_emptied():
    probe, _, labels = filled()
    assert all(key.startswith('backbone.') for key in probe.state_dict())
    features, kept = probe.bank()
    assert torch.equal(kept, labels)
    assert [tuple(feature.shape) for feature in features] == [(75, 16)] * 3
    probe.remember(**batch(5)[0])
    assert len(probe.bank()[1]) == 80
    probe.forget()
    probe.remember(**batch(5)[0])
    assert len(probe.bank()[1]) == 5


def test_knn_takes_any_checkpoint_of_its_backbone():
    """Pre-training's: a shared table, a mask token, a norm and a head that a probe has no use for."""
    pretrained = BEiTViT(
        ARCH, 16, 8, 1, variant='beit_plus', with_mask_token=True, final_norm=True, out_type='raw'
    )  # fmt: skip
    torch.nn.init.normal_(pretrained.rel_pos_bias.relative_position_bias_table)
    weights = {f'backbone.{key}': value for key, value in pretrained.state_dict().items()}
    probe = KNNProbe(BACKBONE, CLASSES)
    probe.load_state_dict({**weights, 'head.cls_head.weight': torch.zeros(3, 16)})
    image = torch.randn(2, 1, 16, 16)
    whole = BEiTViT(ARCH, 16, 8, 1, variant='beit_plus', with_mask_token=True, out_type='raw')  # without the norm
    whole.load_state_dict({key: value for key, value in pretrained.state_dict().items() if 'ln1' not in key[:4]})
    torch.testing.assert_close(probe.backbone(image)[-1], whole.eval()(image)[-1])
    wrong = {key: value for key, value in weights.items() if 'layers.2' not in key}
    with pytest.raises(CheckpointError, match='num_layers is 2 in the checkpoint and 3 here'):
        probe.load_state_dict(wrong)
