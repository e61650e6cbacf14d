"""models/dalle.py: OpenAI's encoder to the number, its size, and that it never trains."""

import torch
from official import golden

from beit_mm.models.dalle import Decoder, Encoder
from beit_mm.ops.pixels import map_pixels


def test_dalle_encoder_equals_openai():
    meta, weights, io = golden('dalle_encoder')
    encoder = Encoder(meta['n_hid'], meta['vocab_size'], meta['n_blk_per_group'])
    encoder.load_state_dict(weights)
    torch.testing.assert_close(map_pixels(io['image_0_1']), io['mapped'])
    torch.testing.assert_close(encoder(io['mapped']), io['logits'], atol=1e-4, rtol=0)
    assert torch.equal(encoder.tokens(io['mapped']), io['tokens'])


def test_dalle_is_frozen_and_of_the_official_size():
    with torch.device('meta'):
        encoder, decoder = Encoder(), Decoder()
    assert sum(p.numel() for p in encoder.parameters()) == 53_786_240
    assert not any(p.requires_grad for p in [*encoder.parameters(), *decoder.parameters()])
    assert not encoder.train().training
    small = Decoder(n_init=8, n_hid=8, vocab_size=16, n_blk_per_group=1)
    image = small.decode(torch.randint(16, (1, 2, 3)))
    assert image.shape == (1, 3, 16, 24)
    assert 0 <= image.min() <= image.max() <= 1


def test_decoder_by_hand():
    """One block of each kind, computed here from OpenAI's formulas."""
    decoder = Decoder(n_init=8, n_hid=8, vocab_size=16, n_blk_per_group=1)
    state = decoder.state_dict()
    tokens = torch.randint(16, (2, 2, 3))

    def conv(x, name):
        weight = state[f'blocks.{name}.w']
        return torch.nn.functional.conv2d(x, weight, state[f'blocks.{name}.b'], padding=weight.shape[-1] // 2)

    x = conv(torch.nn.functional.one_hot(tokens, 16).permute(0, 3, 1, 2).float(), 'input')
    for group in range(1, 5):
        block = f'group_{group}.block_1'
        inside = x
        for i in range(1, 5):
            inside = conv(inside.relu(), f'{block}.res_path.conv_{i}')
        x = (conv(x, f'{block}.id_path') if f'blocks.{block}.id_path.w' in state else x) + inside / 4**2
        if group < 4:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    stats = conv(x.relu(), 'output.conv')
    torch.testing.assert_close(decoder.decode(tokens), ((torch.sigmoid(stats[:, :3]) - 0.1) / 0.8).clamp(0, 1))
