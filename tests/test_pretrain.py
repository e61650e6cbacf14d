"""models/pretrain.py: the loss by hand, the frozen target, every parameter's gradient, with each task's model."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, DefaultScope

from beit_mm.models import BEiTViT, MaskedImageModel
from beit_mm.ops.pixels import patchify

ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
TOKENIZER = dict(
    type='beit_mm.DiscreteVAE', vocab_size=16, in_channels=1, num_downsamples=2, hidden_dims=8, code_dims=8,
    num_res_blocks=1,
)  # fmt: skip
BACKBONE = dict(
    type='beit_mm.BEiTViT', arch=ARCH, img_size=32, patch_size=8, in_channels=1, use_rel_pos_bias=False,
    use_shared_rel_pos_bias=True, out_type='raw', final_norm=True, with_mask_token=True,
)  # fmt: skip


def model(kind=MaskedImageModel, **changes):
    parts = dict(
        backbone=BACKBONE,
        target=dict(type='beit_mm.TokenTarget', tokenizer=TOKENIZER),
        head=dict(type='beit_mm.TokenHead', embed_dims=32, vocab_size=16),
    )
    return kind(**{**parts, **changes})


def batch(count=4):
    mask = torch.zeros(count, 4, 4, dtype=torch.bool)
    for i in range(count):
        mask[i, : 1 + i % 3, 1:3] = True  # ragged
    return dict(patches=torch.randn(count, 1, 32, 32), tokens_view=torch.rand(count, 1, 16, 16), mask=mask)


def test_loss_by_hand():
    mim, data = model().eval(), batch()
    losses = mim.loss(data)
    tokens = mim.target.tokenizer.logits(data['tokens_view']).argmax(dim=-1).flatten(1)
    mask = data['mask'].flatten(1)
    logits = mim.head.cls_head(mim.backbone(data['patches'], data['mask'])[0][:, 1:])
    assert losses['loss_mim'].item() == pytest.approx(F.cross_entropy(logits[mask], tokens[mask]).item(), rel=1e-5)
    right = (logits.argmax(dim=-1) == tokens)[mask].float().mean()
    assert losses['masked_accuracy'].item() == pytest.approx(right.item())
    assert [k for k in losses if 'loss' in k] == ['loss_mim']


class Plain(MaskedImageModel):
    """Features of all patches, of which the masked ones are taken."""

    def masked_features(self, batch):
        return self.features(batch)[batch['mask'].flatten(1)]


def gradients(mim, data, amp=False):
    mim.zero_grad()
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        losses = mim.loss(data)
    losses['loss_mim'].backward()
    return losses, {name: p.grad for name, p in mim.named_parameters()}


@pytest.mark.parametrize('variant', ['beit', 'beit_plus'])
@pytest.mark.parametrize('amp', [False, True])
def test_the_last_block_at_masked_patches_only(variant, amp):
    """The loss and every gradient of the plain way: to rounding in float32, to 2 % of the largest under autocast.

    Biases of the last block's queries have a gradient of masked patches only, keys and values of all.
    """
    backbone = dict(BACKBONE, variant=variant)
    del backbone['use_rel_pos_bias'], backbone['use_shared_rel_pos_bias']
    mim = model(backbone=backbone)
    for parameter in mim.backbone.parameters():  # tables and gammas start where much cancels
        parameter.data += 0.1 * torch.randn_like(parameter)
    plain = model(Plain, backbone=backbone)
    plain.load_state_dict(mim.state_dict())
    plain.target, tolerance = mim.target, 2e-2 if amp else 2e-5
    for mode in (True, False):
        for count in (1, 2, 5):
            data = batch(count)
            data['mask'][0] = count == 2  # all of an image, or none of it
            (found, ours), (expected, theirs) = (gradients(m.train(mode), data, amp) for m in (mim, plain))
            assert found.keys() == expected.keys()
            if count == 1:
                assert found['loss_mim'] == expected['loss_mim'] == found['num_predicted'] == 0
                continue
            torch.testing.assert_close(found['loss_mim'], expected['loss_mim'], rtol=tolerance, atol=0)
            assert found['num_predicted'] == expected['num_predicted']
            for name, gradient in theirs.items():
                assert (ours[name] - gradient).abs().max() <= tolerance * max(1e-3, gradient.abs().max()), name


def test_it_counts_over_ranks_as_the_plain_way(monkeypatch):
    """Another rank has 30 masked patches: the sum of this rank's is over all of them, times the ranks (DDP's mean)."""
    mim, data = model(), batch()
    alone = mim.loss(data)
    monkeypatch.setattr('mmengine.dist.get_world_size', lambda: 2)
    monkeypatch.setattr('mmengine.dist.all_reduce', lambda counts: counts.add_(30))
    among = mim.loss(data)
    masked = int(data['mask'].sum())
    assert among['num_predicted'] == masked + 30
    torch.testing.assert_close(among['loss_mim'], alone['loss_mim'] * masked / (masked + 30) * 2)


def test_any_other_backbone_is_asked_for_all():
    class Foreign(torch.nn.Module):
        """As another project's: it has no `masked_features`."""

        def __init__(self, own):
            super().__init__()
            self.own, self.num_extra_tokens = own, 1

        def forward(self, x, mask):
            return self.own(x, mask)

    mim, data = model().eval(), batch()
    expected = mim.loss(data)['loss_mim']
    mim.backbone = Foreign(mim.backbone)
    torch.testing.assert_close(mim.loss(data)['loss_mim'], expected)


def test_earlier_blocks_are_predicted_from_if_they_are_the_output():
    mim, data = model(backbone=dict(BACKBONE, out_indices=(1, 0))).eval(), batch()
    assert mim.backbone.num_layers == 2
    logits = mim.head.cls_head(mim.backbone(data['patches'], data['mask'])[1][:, 1:])[data['mask'].flatten(1)]
    expected = F.cross_entropy(logits, mim.target(data)[data['mask'].flatten(1)])
    torch.testing.assert_close(mim.loss(data)['loss_mim'], expected)


def test_what_stands_before_the_call_of_the_backbone_is_not_passed_by():
    """A forward of one's own, and hooks."""

    class Negated(BEiTViT):
        def forward(self, x, mask=None):
            return tuple(-out for out in super().forward(x, mask))

    mim, data = model().eval(), batch()
    weights = mim.backbone.state_dict()
    before = mim.masked_features(data)
    hook = mim.backbone.register_forward_hook(lambda module, inputs, outputs: tuple(3 * out for out in outputs))
    torch.testing.assert_close(mim.masked_features(data), 3 * before)
    hook.remove()
    torch.testing.assert_close(mim.masked_features(data), before)
    mim.backbone = Negated(**{key: value for key, value in BACKBONE.items() if key != 'type'}).eval()
    mim.backbone.load_state_dict(weights)
    torch.testing.assert_close(mim.masked_features(data), -before)


def test_loss_at_the_start_is_log_of_the_vocabulary():
    assert model().loss(batch(32))['loss_mim'].item() == pytest.approx(math.log(16), abs=0.1)


def test_recover_all_and_no_masking():
    data = batch()
    for hide in (True, False):
        mim = model(predict='all', hide=hide).eval()
        tokens = mim.target(data)
        shown = data['mask'] if hide else None
        logits = mim.head(mim.backbone(data['patches'], shown)[0][:, 1:])
        expected = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        assert mim.loss(data)['loss_mim'].item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(ValueError, match="set predict='all'"):
        model(hide=False)


def test_pixel_target():
    data = batch()
    mim = model(
        target=dict(type='beit_mm.PixelTarget', patch_size=8),
        head=dict(type='beit_mm.PixelHead', embed_dims=32, num_pixels=64),
    ).eval()
    mask = data['mask'].flatten(1)
    guess = mim.head(mim.features(data))[mask]
    expected = (guess - patchify(data['patches'], 8)[mask]).square().mean()
    assert mim.loss(data)['loss_mim'].item() == pytest.approx(expected.item(), rel=1e-5)


def test_tokenizer_is_nobodys_parameter():
    mim = model()
    names = [*dict(mim.named_parameters()), *mim.state_dict()]
    assert not any('tokenizer' in name or 'target' in name for name in names)
    mim.train()
    assert not mim.target.tokenizer.training
    assert not any(p.requires_grad for p in mim.target.tokenizer.parameters())


def test_the_optimizer_never_sees_the_tokenizer():
    """mmpretrain's DALL-E encoder is 53.8 M parameters of every optimizer, DDP bucket and checkpoint."""
    mim, data = model(), batch()
    before = {k: v.clone() for k, v in mim.target.tokenizer.state_dict().items()}
    optimizer = torch.optim.AdamW(mim.parameters(), lr=1.0, weight_decay=0.5)
    own = {id(p) for p in mim.target.tokenizer.parameters()}
    assert not any(id(p) in own for group in optimizer.param_groups for p in group['params'])
    mim.loss(data)['loss_mim'].backward()
    optimizer.step()
    for key, value in mim.target.tokenizer.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_predict_gives_what_the_metric_compares():
    mim, data = model().eval(), batch()
    with torch.no_grad():
        predictions = mim(mode='predict', **data)
    mask = data['mask'].flatten(1)
    logits = mim.head(mim.backbone(data['patches'], data['mask'])[0][:, 1:])
    for i, sample in enumerate(predictions):
        assert torch.equal(sample['mask'], mask[i])
        assert torch.equal(sample['prediction'], logits[i].argmax(dim=-1))
        assert torch.equal(sample['target'], mim.target.tokenizer.tokens(data['tokens_view'])[i].flatten())


def test_hidden_pixels_do_not_reach_the_loss():
    mim, data = model().eval(), batch()
    hidden = torch.nn.functional.interpolate(data['mask'][:, None].float(), scale_factor=8).bool()
    other = dict(data, patches=torch.where(hidden, torch.randn_like(data['patches']), data['patches']))
    assert not torch.equal(other['patches'], data['patches'])
    assert torch.equal(mim.loss(data)['loss_mim'], mim.loss(other)['loss_mim'])


def test_no_gradient_reaches_a_hidden_pixel():
    """The logits of every patch, masked or not, through attention and relative positions: exactly zero."""
    mim, data = model().eval(), batch()
    image = data['patches'].requires_grad_()
    hidden = F.interpolate(data['mask'][:, None].float(), scale_factor=8).bool()
    mim.head(mim.features(data)).square().sum().backward()
    assert not image.grad[hidden].any()
    assert image.grad[~hidden].abs().min() > 0


def test_an_empty_mask_trains_on():
    mim, data = model(), batch()
    data['mask'] = torch.zeros_like(data['mask'])
    losses = mim.loss(data)
    assert losses['loss_mim'].item() == 0
    losses['loss_mim'].backward()
    assert all(torch.isfinite(p.grad).all() for p in mim.parameters())


def test_head_and_target_must_agree():
    with pytest.raises(ValueError, match='TokenHead predicts one of 17 tokens, TokenTarget has 16'):
        model(head=dict(type='beit_mm.TokenHead', embed_dims=32, vocab_size=17))
    with pytest.raises(ValueError, match='TokenHead predicts one of 16 tokens, PixelTarget has None'):
        model(target=dict(type='beit_mm.PixelTarget', patch_size=8))
    with pytest.raises(ValueError, match='TokenHead has embed_dims=31, the backbone 32'):
        model(head=dict(type='beit_mm.TokenHead', embed_dims=31, vocab_size=16))
    with pytest.raises(ValueError, match="out_type is 'cls_token'; set 'raw'"):
        model(backbone=dict(BACKBONE, out_type='cls_token'))


def test_where_nothing_is_hidden_the_mask_token_does_not_learn():
    """DDP would wait for its gradient (find_unused_parameters is off)."""
    assert not model(predict='all', hide=False).backbone.mask_token.requires_grad
    assert model(predict='all').backbone.mask_token.requires_grad


def test_what_is_logged():
    """mmengine sums the keys with "loss" in them: there is one, and the count is not among the scalars."""
    mim = model()
    loss, logged = mim.parse_losses(mim.loss(batch()))
    assert set(logged) == {'loss', 'loss_mim', 'masked_accuracy', 'target_entropy', 'codes_used'}
    assert logged['loss'].item() == logged['loss_mim'].item() == loss.item()
    assert loss.count.item() == 2 + 4 + 6 + 2  # masked patches


def test_overfits_one_batch():
    mim, data = model(), batch(8)
    optimizer = torch.optim.AdamW(mim.parameters(), lr=3e-3)
    for _ in range(80):
        losses = mim.loss(data)
        optimizer.zero_grad()
        losses['loss_mim'].backward()
        optimizer.step()
    assert losses['masked_accuracy'].item() > 0.95


def classifier():
    backbone = dict(type='beit_mm.BEiTViT', arch=ARCH, img_size=32, patch_size=8, in_channels=1)
    head = dict(type='LinearClsHead', num_classes=3, in_channels=32)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        built = MODELS.build(dict(type='ImageClassifier', backbone=backbone, head=head))
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(i) for i in (0, 2)]
    return built, lambda: built.loss(torch.randn(2, 1, 32, 32), samples)


def segmentor():
    import mmseg.models  # noqa: F401
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    norm = dict(type='BN')
    with DefaultScope.overwrite_default_scope('mmseg'):
        built = MODELS.build(
            dict(
                type='EncoderDecoder',
                backbone=dict(
                    type='beit_mm.BEiTViT', arch={**ARCH, 'num_layers': 4}, img_size=32, patch_size=8, in_channels=1,
                    out_type='featmap', out_indices=(0, 1, 2, 3),
                ),
                neck=dict(type='beit_mm.ViTPyramid', embed_dim=32),
                decode_head=dict(
                    type='UPerHead', in_channels=[32] * 4, in_index=[0, 1, 2, 3], channels=8, num_classes=3,
                    pool_scales=(1, 2), norm_cfg=norm, align_corners=False,
                ),
                auxiliary_head=dict(
                    type='FCNHead', in_channels=32, in_index=2, channels=8, num_convs=1, concat_input=False,
                    num_classes=3, norm_cfg=norm, align_corners=False,
                ),
                train_cfg=dict(), test_cfg=dict(mode='whole'),
            )
        )  # fmt: skip
    samples = []
    for _ in range(2):
        sample = SegDataSample()
        sample.gt_sem_seg = PixelData(data=torch.randint(3, (1, 32, 32)))
        samples.append(sample)
    return built, lambda: built.loss(torch.randn(2, 1, 32, 32), samples)


@pytest.mark.parametrize('task', ['mim', 'classifier', 'segmentor'])
def test_every_parameter_gets_a_gradient(task):
    if task == 'mim':
        built = model()
        losses = lambda: built.loss(batch())  # noqa: E731
    else:
        built, losses = classifier() if task == 'classifier' else segmentor()
    built.train()
    sum(v for k, v in losses().items() if 'loss' in k).backward()
    without = [name for name, p in built.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
