"""models/targets.py: tokens or pixels per patch, frozen, and never of a grid that does not fit."""

import pytest
import torch
from mmpretrain.models.heads import MAEPretrainHead
from official import golden

from beit_mm.checkpoints.load import CheckpointError, write
from beit_mm.models.targets import CachedTokens, PixelTarget, TokenTarget
from beit_mm.ops.pixels import patchify
from beit_mm.registry import MODELS

TOKENIZER = dict(
    type='beit_mm.DiscreteVAE', vocab_size=16, in_channels=1, num_downsamples=2, hidden_dims=8, code_dims=8,
    num_res_blocks=1,
)  # fmt: skip


def view(count=2, size=16):
    return dict(tokens_view=torch.rand(count, 1, size, size), mask=torch.zeros(count, size // 4, size // 4).bool())


def test_tokens_of_openai(tmp_path):
    """The whole way: OpenAI's weights from a file, the view that BEiT's loader gives, the official tokens.

    The golden's are all one id; with its mean logit taken off each code they are many, and some change in bf16.
    """
    meta, weights, io = golden('dalle_encoder')
    tokenizer = dict(type='beit_mm.DALLEEncoder', **{k: meta[k] for k in ('n_hid', 'vocab_size', 'n_blk_per_group')})
    mask = torch.zeros_like(io['tokens'], dtype=torch.bool)
    for centre in (torch.zeros(meta['vocab_size']), io['logits'].mean(dim=(0, 2, 3))):
        weights['blocks.output.conv.b'] = weights['blocks.output.conv.b'] - centre
        write(weights, tmp_path / 'encoder.pth')
        target = TokenTarget(tokenizer, checkpoint=str(tmp_path / 'encoder.pth'))
        tokens = (io['logits'] - centre[:, None, None]).argmax(dim=1).flatten(1)
        assert torch.equal(target(dict(tokens_view=io['mapped'], mask=mask)), tokens)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert torch.equal(target(dict(tokens_view=io['mapped'], mask=mask)), tokens)
            inside = target.tokenizer.tokens(io['mapped']).flatten(1)
        assert torch.equal(tokens, io['tokens'].flatten(1)) == (not centre.any())
    assert len(tokens.unique()) == 15  # of 16 places
    assert not torch.equal(inside, tokens)
    assert target.vocab_size == meta['vocab_size']


@pytest.mark.parametrize('kind', ['DALLEEncoder', 'DiscreteVAE', 'UnilmDiscreteVAE', 'KMeansTokenizer'])
def test_channels_last_gives_the_same_tokens(kind, tmp_path):
    """Images that are not square, one or several; weights that came from a file lie that way too."""
    arguments = dict(
        DALLEEncoder=dict(n_hid=16, vocab_size=64, n_blk_per_group=2),
        DiscreteVAE=dict(vocab_size=64, hidden_dims=16, code_dims=8),
        UnilmDiscreteVAE=dict(vocab_size=64, hidden_dims=16, code_dims=8),
        KMeansTokenizer=dict(vocab_size=64, downsampling=8, neighbourhood=8),
    )[kind]
    torch.manual_seed(1)
    plain = MODELS.build(dict(type=f'beit_mm.{kind}', **arguments)).eval()
    last = dict(DALLEEncoder='blocks.output.conv', DiscreteVAE='to_logits', UnilmDiscreteVAE='encoder.6').get(kind)
    if last:  # what all cells share must not decide
        layer, seen = plain.get_submodule(last), []
        hook = layer.register_forward_hook(lambda module, given, logits: seen.append(logits))
        plain.tokens(torch.rand(4, 3, 64, 64) * 0.8 + 0.1)
        hook.remove()
        logits = seen[0] if kind == 'DiscreteVAE' else seen[0].permute(0, 2, 3, 1)
        (layer.b if kind == 'DALLEEncoder' else layer.bias).data -= logits.detach().mean(dim=(0, 1, 2))
    write(dict(state_dict=plain.state_dict()), tmp_path / 'tokenizer.pth')
    target = TokenTarget(dict(type=f'beit_mm.{kind}', **arguments), str(tmp_path / 'tokenizer.pth'))
    weights = [w for w in target.tokenizer.parameters() if w.ndim == 4 and w.shape[1] > 1 and w.shape[2] > 1]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    for shape in ((1, 3, 16, 16), (3, 3, 24, 40), (2, 3, 64, 64)):
        view = torch.rand(shape) * 0.8 + 0.1
        with torch.no_grad():
            tokens = plain.tokens(view)
        assert torch.equal(target.tokens(view), tokens)
    assert len(tokens.unique()) > 40  # of 64


def test_the_digest_is_of_kind_arguments_and_weights():
    torch.manual_seed(0)
    target = TokenTarget(TOKENIZER)
    digests = {target.digest()}
    torch.manual_seed(0)
    assert TokenTarget(dict(TOKENIZER, type='DiscreteVAE', _scope_='beit_mm')).digest() in digests
    torch.manual_seed(0)
    digests.add(TokenTarget(dict(TOKENIZER, straight_through=True)).digest())
    target.tokenizer.to_logits.bias.data[3] += 1e-6
    digests.add(target.digest())
    assert len(digests) == 3


def test_cached_tokens_come_with_every_training_batch():
    target, data = CachedTokens(TOKENIZER), view()
    with pytest.raises(ValueError, match=r'CachedTokens: the training data bring no tokens. Put .*TokensFromCache'):
        target(data)
    given = torch.randint(16, (2, 4, 4))
    assert torch.equal(target(dict(mask=data['mask'], tokens=given)), given.flatten(1))
    assert torch.equal(target.eval()(data), target.tokens(data['tokens_view']).flatten(1))  # an evaluation's


def test_tokens_computed_before_are_taken():
    tokens = torch.randint(16, (2, 4, 4))
    target, mask = TokenTarget(TOKENIZER), torch.zeros(2, 4, 4).bool()
    assert torch.equal(target(dict(tokens=tokens.int(), mask=mask)), tokens.flatten(1))
    with pytest.raises(ValueError, match=r'are for 2 images of 4 x 4 patches, the mask is for 2 images of 2 x 8'):
        target(dict(tokens=tokens, mask=mask.view(2, 2, 8)))
    for wrong in (16, -1):
        tokens[1, 2, 3] = wrong
        with pytest.raises(ValueError, match=rf'hold id {wrong}, and the vocabulary has 16 \(0\.\.15\)'):
            target(dict(tokens=tokens, mask=mask))


@pytest.mark.parametrize('kind', [torch.uint8, torch.int16, torch.int32])
def test_tokens_of_any_integer_kind(kind):
    """A byte cannot hold -1, and 200 of an int8 is one: the range is looked at after the widening."""
    tokens, mask = torch.randint(16, (2, 4, 4)), torch.zeros(2, 4, 4).bool()
    taken = TokenTarget(TOKENIZER)(dict(tokens=tokens.to(kind), mask=mask))
    assert taken.dtype is torch.int64
    assert torch.equal(taken, tokens.flatten(1))


def test_batches_that_are_not_for_this_target():
    target, mask = TokenTarget(TOKENIZER), torch.zeros(2, 4, 4).bool()
    with pytest.raises(ValueError, match=r'computed before are torch.float32, and ids are integers'):
        target(dict(tokens=torch.zeros(2, 4, 4), mask=mask))
    with pytest.raises(ValueError, match='the batch has neither tokens_view nor tokens, but patches, mask'):
        target(dict(patches=torch.zeros(2, 3, 32, 32), mask=mask))
    with pytest.raises(ValueError, match='for 3 images of 4 x 4 patches, the mask is for 2 images'):
        target(dict(tokens=torch.zeros(3, 4, 4).long(), mask=mask))
    assert target(dict(tokens=torch.zeros(0, 4, 4).long(), mask=mask[:0])).shape == (0, 16)
    with pytest.raises(ValueError, match='patch_size=8 gives 16 patches, the mask is for 2 images of 2 x 2'):
        PixelTarget(8)(dict(patches=torch.zeros(2, 3, 32, 32), mask=torch.zeros(2, 2, 2).bool()))


def test_a_tokenizer_without_parameters():
    """k-means keeps its centres in a buffer; a tokenizer may have neither."""

    class Constant(torch.nn.Module):
        vocab_size = 4

        def tokens(self, view):
            return torch.full((len(view), 2, 2), 3)

    target = TokenTarget(TOKENIZER)
    target._tokenizer[0] = Constant()
    mask = torch.zeros(2, 2, 2).bool()
    assert (target(dict(tokens_view=torch.rand(2, 3, 8, 8), mask=mask)) == 3).all()


def test_grids_must_agree():
    data = dict(view(1), mask=torch.zeros(1, 8, 8, dtype=torch.bool))
    with pytest.raises(
        ValueError, match=r'for 1 images of 4 x 4 patches from .* 16 x 16 pixels, the mask .* of 8 x 8 patches'
    ):
        TokenTarget(TOKENIZER)(data)
    data['mask'] = torch.zeros(1, 2, 8, dtype=torch.bool)  # as many, elsewhere
    with pytest.raises(ValueError, match=r'of 4 x 4 patches from .* the mask is for 1 images of 2 x 8 patches'):
        TokenTarget(TOKENIZER)(data)


def test_weights_of_a_training_checkpoint(tmp_path):
    trained = MODELS.build(TOKENIZER)
    write(dict(state_dict=trained.state_dict(), meta=dict(iter=3)), tmp_path / 'iter_3.pth')
    data = view()
    target = TokenTarget(TOKENIZER, checkpoint=str(tmp_path / 'iter_3.pth'))
    assert torch.equal(target(data), trained.tokens(data['tokens_view']).flatten(1))
    with pytest.raises(CheckpointError, match=r'iter_3\.pth: vocab_size is 16 in the file and 17 here'):
        TokenTarget(dict(TOKENIZER, vocab_size=17), checkpoint=str(tmp_path / 'iter_3.pth'))
    with pytest.raises(CheckpointError, match=r'no such checkpoint.*for another: model\.target\.checkpoint=FILE'):
        TokenTarget(TOKENIZER, checkpoint=str(tmp_path / 'iter_4.pth'))
    missing = 'work_dirs/dvae-512_1xb64-300_mosaics-32/nowhere.pth'
    with pytest.raises(CheckpointError, match=r'tools/train\.py configs/tokenizer/dvae-512_1xb64-300_mosaics-32'):
        TokenTarget(TOKENIZER, checkpoint=missing)


def test_frozen_where_it_is_built():
    target = TokenTarget(TOKENIZER).train()
    assert target.state_dict() == {}
    assert list(target.parameters()) == []
    assert not target.tokenizer.training
    data = view()
    data['tokens_view'].requires_grad_()
    assert not target(data).requires_grad


def test_pixels():
    patches = torch.randn(2, 3, 16, 8)
    target = PixelTarget(4)(dict(patches=patches))
    assert torch.equal(target, patchify(patches, 4))
    # the third patch of the first column's second row: rows 4..7, columns 0..3, the channel fastest
    assert torch.equal(target[1, 2].view(4, 4, 3).permute(2, 0, 1), patches[1, :, 4:8, :4])


def test_pixels_normalised_per_patch_are_those_of_mae():
    patches = torch.randn(2, 3, 16, 16) * 7 + 3
    patches[0, :, :4, :4] = 2.0  # flat
    head = MAEPretrainHead(loss=dict(type='PixelReconstructionLoss', criterion='L2'), norm_pix=True, patch_size=4)
    target = PixelTarget(4, per_patch=True)(dict(patches=patches))
    torch.testing.assert_close(target, head.construct_target(patches), atol=1e-5, rtol=1e-5)
    assert not target[0, 0].any()
