"""What the pictures show, against the models and masks that they are made of."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist

from beit_mm.apis import build_model, init_model
from beit_mm.benchmark.pictures import features, images, masks, positions, tokens
from beit_mm.benchmark.pictures.canvas import GAP, TILE, PictureError
from beit_mm.benchmark.pictures.models import load_backbone, load_tokenizer, painter_of
from beit_mm.benchmark.pictures.reconstruction import guesses, reconstruction_panel
from beit_mm.benchmark.pictures.segmentation import mean_iou, segmentation_panel
from beit_mm.checkpoints.load import CheckpointError
from beit_mm.data import embedded
from beit_mm.engine.configs import load_config
from beit_mm.engine.errors import ConfigError
from beit_mm.engine.metrics import areas
from beit_mm.engine.overlay import overlay
from beit_mm.models.backbone import BEiTViT
from beit_mm.models.dalle import Decoder, Encoder
from beit_mm.ops.masking import blockwise_mask
from beit_mm.ops.pixels import unmap_pixels

TINY = {
    'model.backbone.arch': dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=96),
    'test_dataloader.dataset.length': 12,
}
MIM = 'configs/pretrain/beit-mini-p8_dvae_1xb48-1500_embedded-64.py'
PIXELS = 'configs/pretrain/beit-mini-p8_pixels_1xb48-1500_embedded-64.py'
SEGMENT = 'configs/segmentation/beit-mini-p8_upernet_1xb32-150_embedded-64.py'
TOKENIZER = 'configs/tokenizer/dvae-512_1xb64-300_embedded-32.py'
UNTRAINED = {'model.target.checkpoint': None}
SCALE = TILE // 64
STEP = TILE + GAP


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert('RGB'))


def tile(page: np.ndarray, row: int, column: int, first: np.ndarray) -> np.ndarray:
    """A picture of a sheet at its own size, (64, 64, 3); `first` is the one at the top left, by which it is found."""
    wanted = first[0].repeat(SCALE, axis=0)  # its first row, enlarged
    top = next(y for y in range(page.shape[0]) if (page[y, GAP : GAP + TILE] == wanted).all())
    place = top + row * STEP, GAP + column * STEP
    return page[place[0] : place[0] + TILE : SCALE, place[1] : place[1] + TILE : SCALE]


def scene(index: int) -> np.ndarray:
    return embedded.scene(0, 'val', index, 64, grey=True).image.repeat(3, axis=2)


@pytest.fixture(scope='module')
def mim():
    config = load_config(MIM, {**TINY, **UNTRAINED})
    torch.manual_seed(0)
    return config, build_model(config).eval()


def test_reconstructions(mim):
    config, model = mim
    samples = images.packed(config).chosen([2, 5])
    panel = reconstruction_panel(model, samples, images.packed(config).chosen([0, 1]))
    page = opened(panel.png)
    assert page.shape[1] == GAP + 4 * STEP
    for row, index in enumerate((2, 5)):
        hidden = samples[row]['mask'].numpy().repeat(8, 0).repeat(8, 1)
        np.testing.assert_array_equal(tile(page, row, 0, scene(2)), scene(index))
        grey = np.where(hidden[..., None], masks.HIDDEN, scene(index))
        np.testing.assert_array_equal(tile(page, row, 1, scene(2)), grey)
        view = model.data_preprocessor(dict(tokens_view=samples[row]['tokens_view'][None]))['tokens_view']
        painted = tokens.to_picture(model.target.tokenizer.decode(model.target.tokenizer.tokens(view))[0])
        np.testing.assert_array_equal(tile(page, row, 3, scene(2)), painted.repeat(2, 0).repeat(2, 1))
    guess, truth, mask = guesses(model, [*samples, *images.packed(config).chosen([0, 1])])
    assert panel.numbers['masked accuracy'] == pytest.approx(float((guess == truth)[mask].float().mean()))
    often = np.bincount(truth[mask].numpy()).max() / int(mask.sum())
    assert panel.numbers['always the most frequent token'] == pytest.approx(often)


@pytest.mark.parametrize('per_patch', [False, True])
def test_reconstructions_of_pixel_targets(per_patch):
    """The visible patches of `predicted pixels` are the image's own; the hidden ones are not."""
    config = load_config(PIXELS, {**TINY, 'model.target.per_patch': per_patch})
    samples = images.packed(config).chosen([0])
    panel = reconstruction_panel(build_model(config).eval(), samples)
    page = opened(panel.png)
    hidden = samples[0]['mask'].numpy().repeat(8, 0).repeat(8, 1)
    image, predicted = (tile(page, 0, c, scene(0))[..., 0].astype(int) for c in (0, 2))
    assert np.abs(image - predicted)[~hidden].max() <= 1
    error = np.abs(image - predicted)[hidden].mean() / 255
    assert error > 0.01
    assert panel.numbers['masked pixel error'] == pytest.approx(error, abs=0.01)
    np.testing.assert_array_equal(tile(page, 0, 3, scene(0)), tile(page, 0, 0, scene(0)))


def test_without_a_decoder_tokens_stand_for_themselves(mim):
    """DALL-E's encoder alone: token colours, agreement, and it says so; with OpenAI's decoder it paints."""
    config, model = mim
    samples = images.packed(config).chosen([0])
    own, encoder = model.target._tokenizer[0], Encoder(n_hid=8, vocab_size=512, n_blk_per_group=1)
    encoder.tokens = lambda view: torch.arange(64).view(1, 8, 8).expand(len(view), 8, 8)
    model.target._tokenizer[0] = encoder
    try:
        panel = reconstruction_panel(model, samples)
    finally:
        model.target._tokenizer[0] = own
    assert 'This tokenizer has no decoder' in panel.caption
    assert opened(panel.png).shape[1] == GAP + 5 * STEP
    page = opened(panel.png)
    shown = tile(page, 0, 3, scene(0))[1::8, 1::8]
    np.testing.assert_array_equal(shown, tokens.colours_of(np.arange(64).reshape(8, 8)))


def test_openais_decoder_paints_for_its_encoder(tmp_path):
    encoder, decoder = Encoder(n_hid=8, vocab_size=16, n_blk_per_group=1), Decoder(8, 8, 16, 1)
    torch.save(decoder.state_dict(), tmp_path / 'decoder.pth')
    ids = torch.randint(0, 16, (2, 3, 4))
    assert painter_of(encoder) is None
    torch.testing.assert_close(painter_of(encoder, str(tmp_path / 'decoder.pth'))(ids), decoder.decode(ids))
    with pytest.raises(CheckpointError, match='paints 16 tokens, the tokenizer has 512'):
        painter_of(Encoder(n_hid=8, vocab_size=512, n_blk_per_group=1), str(tmp_path / 'decoder.pth'))
    torch.save(encoder.state_dict(), tmp_path / 'encoder.pth')
    with pytest.raises(CheckpointError, match='paints 3 tokens, the tokenizer has 16'):
        painter_of(encoder, str(tmp_path / 'encoder.pth'))


def test_tokens(mim):
    config, model = mim
    samples, more = images.packed(config).chosen([1]), images.packed(config).chosen([2, 3])
    tokenizer = model.target.tokenizer
    panel = tokens.tokens_panel(tokenizer, model.data_preprocessor, samples, more, painter_of(tokenizer))
    batch = torch.stack([s['tokens_view'] for s in (*samples, *more)])
    views = model.data_preprocessor(dict(tokens_view=batch), False)['tokens_view']
    ids = tokenizer.tokens(views)
    counts = np.bincount(ids.flatten().numpy(), minlength=512)
    share = counts[counts > 0] / counts.sum()
    assert panel.numbers['codes used'] == (counts > 0).sum()
    assert panel.numbers['perplexity'] == pytest.approx(float(np.prod(share**-share)))
    error = float((tokenizer.decode(ids) - unmap_pixels(views)).abs().mean())
    assert panel.numbers['reconstruction error'] == pytest.approx(error, rel=1e-5)
    page = opened(panel.png).reshape(-1, 3)
    colours = tokens.colours_of(ids[0].numpy()).reshape(-1, 3)
    assert {tuple(c) for c in colours.tolist()} <= {tuple(c) for c in np.unique(page, axis=0).tolist()}


def test_a_tokenizer_is_read_as_pre_training_reads_it(tmp_path):
    """From its own config and from that of a pre-training: the same tokens; counters of training may be missing."""
    weights = build_model(load_config(TOKENIZER)).state_dict()
    kept = {key: value for key, value in weights.items() if key not in ('num_updates', 'code_counts')}
    torch.save(dict(state_dict=kept), tmp_path / 'dvae.pth')
    alone, _ = load_tokenizer(load_config(TOKENIZER), str(tmp_path / 'dvae.pth'))
    target, _ = load_tokenizer(load_config(MIM, {'model.target.checkpoint': str(tmp_path / 'dvae.pth')}), None)
    view = 0.1 + 0.8 * torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(alone.tokens(view), target.tokens(view))
    torch.testing.assert_close(alone.state_dict()['to_logits.weight'], weights['to_logits.weight'])


def test_a_code_keeps_its_colour_and_codes_are_told_apart():
    colours = tokens.colours_of(np.arange(8192))
    assert len(np.unique(colours[:64], axis=0)) == 64
    assert len(np.unique(colours, axis=0)) > 8000
    np.testing.assert_array_equal(tokens.colours_of(np.array([[5, 9]]))[0], colours[[5, 9]])


def test_the_law_of_masks():
    """Counted from the masks themselves, and like the official generator's 14 x 14 masks: 66.6 % are full."""
    config = load_config('configs/pretrain/beit-base-p16_dalle_16xb128-800e_in1k-224.py')
    image = images.Image('x', np.zeros((224, 224, 3), np.uint8))
    panel = masks.masks_panel(config, [image], draws=1000)
    rng = np.random.default_rng([0, 1000])
    drawn = np.stack([blockwise_mask(rng, (14, 14), 75) for _ in range(1000)])
    counts = drawn.sum(axis=(1, 2))
    numbers = panel.numbers
    assert numbers['blockwise: masked patches, mean'] == counts.mean() == pytest.approx(74.47, abs=0.15)
    assert numbers['blockwise: share of masks with all that are wanted'] == pytest.approx(0.666, abs=0.05)
    edges = drawn.mean(axis=0)
    edges = [*edges[0], *edges[-1], *edges[1:-1, 0], *edges[1:-1, -1]]
    assert numbers['blockwise: share masked at the edge'] == pytest.approx(np.mean(edges))
    assert numbers['random: masked patches, least'] == numbers['random: masked patches, most'] == 75
    assert numbers['random: share masked at the edge'] == pytest.approx(75 / 196, abs=0.02)
    beside = 'right neighbour of a masked patch masked too'
    assert numbers[f'random: {beside}'] == pytest.approx(74 / 195, abs=0.02)
    assert numbers[f'blockwise: {beside}'] > 0.8
    with pytest.raises(PictureError, match='masks nothing'):
        masks.masks_panel(load_config(SEGMENT), [image])


def test_relative_bias_lies_around_the_query():
    """Bias towards the key two rows down and one to the left, in block 1, head 0: there, and nowhere else."""
    arch = dict(embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=16)
    backbone = BEiTViT(arch, img_size=(24, 32), patch_size=8)
    rows, columns = backbone.own_grid
    with torch.no_grad():
        table = backbone.layers[1].attn.relative_position_bias_table
        table[(rows - 1 - 2) * (2 * columns - 1) + columns - 1 + 1, 0] = 3.0  # query minus key = (-2, 1)
        table[-2, 1] = -1.5
    found = positions.tables_of(backbone)
    expected = np.zeros((2, 2 * rows - 1, 2 * columns - 1))
    expected[0, rows - 1 + 2, columns - 1 - 1] = 3.0
    np.testing.assert_array_equal(found['block 1'].offsets, expected)
    assert not found['block 0'].offsets.any()
    numbers = positions.relative_bias_panel(backbone).numbers
    assert numbers['block 1, head 0: greatest'] == 3.0
    assert numbers['block 1, head 0: all offsets'] == pytest.approx(3.0 / expected[0].size)
    assert numbers['block 1, head 1: patch to class token'] == -1.5
    with pytest.raises(PictureError, match='no absolute positions'):
        positions.absolute_panel(backbone)


def test_shared_tables_and_absolute_positions():
    arch = dict(embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=16)
    shared = BEiTViT(arch, img_size=16, patch_size=8, use_rel_pos_bias=False, use_shared_rel_pos_bias=True)
    assert list(positions.tables_of(shared)) == ['all blocks']
    absolute = BEiTViT(arch, img_size=(16, 24), patch_size=8, variant='beit')
    with pytest.raises(PictureError, match='no relative position bias; it has absolute positions: --absolute'):
        positions.relative_bias_panel(absolute)
    similarity = positions.similarity_of(absolute)
    held = absolute.pos_embed.detach()[0, 1:].numpy()
    np.testing.assert_allclose(similarity.reshape(6, 6), 1 - cdist(held, held, 'cosine'), atol=1e-6)
    assert similarity.shape == (2, 3, 2, 3)
    numbers = positions.absolute_panel(absolute).numbers
    near = [similarity[0, 0, 0, 1], similarity[0, 1, 0, 2], similarity[1, 0, 1, 1], similarity[1, 1, 1, 2],
            similarity[0, 0, 1, 0], similarity[0, 1, 1, 1], similarity[0, 2, 1, 2]]  # fmt: skip
    assert numbers['cosine of neighbours'] == pytest.approx(np.mean(near))


def test_numbers_of_features_are_scikit_learns():
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score
    from sklearn.model_selection import LeaveOneOut, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 60)
    values = rng.normal(size=(60, 8)) + 0.9 * np.eye(8)[labels]
    found = features.numbers_of(values, labels)
    model = KNeighborsClassifier(10, metric='cosine', algorithm='brute')
    expected = cross_val_score(model, values, labels, cv=LeaveOneOut()).mean()
    assert found[features.ACCURACY] == pytest.approx(expected)
    assert found['silhouette (cosine)'] == pytest.approx(silhouette_score(values, labels, metric='cosine'))
    assert found['share of the most frequent class'] == np.bincount(labels).max() / 60
    pca = PCA(3).fit(values)
    scores, shares = features.principal(values, 3)
    np.testing.assert_allclose(np.abs(scores), np.abs(pca.transform(values)), atol=1e-9)
    np.testing.assert_allclose(shares, pca.explained_variance_ratio_)
    np.testing.assert_array_equal(*(features.in_plane(values[:16], 'tsne', 3) for _ in range(2)))


def test_features_of_the_block_that_is_asked_for(mim, tmp_path):
    config, model = mim
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'mim.pth')
    backbone = load_backbone(config, str(tmp_path / 'mim.pth'))
    source = images.from_config(config)
    ((tokens_of_1, image),) = features.tokens_of(backbone, config, [source.load(4)], 1)
    values = images.normalised(image.pixels, config)[None]
    with torch.no_grad():
        expected = backbone.embed(values, None, (8, 8))
        for block, bias in zip(backbone.layers[:2], backbone._biases((8, 8), expected), strict=False):
            expected = backbone._through(block, expected, bias)
    torch.testing.assert_close(tokens_of_1, expected[0])
    with pytest.raises(PictureError, match='--layer 4: there are 4 blocks, 0 to 3'):
        features.tokens_of(backbone, config, [image], 4)
    few = features.features_panel(backbone, config, [image], [image])
    assert 'too few' in few.caption
    panel = features.features_panel(backbone, config, [image], source.chosen(range(12)), source.classes, plane='pca')
    assert panel.png == features.features_panel(
        backbone, config, [image], source.chosen(range(12)), source.classes, plane='pca'
    ).png  # fmt: skip
    assert panel.numbers['images in the plane'] == 12


def test_segmentations(tmp_path):
    config = load_config(SEGMENT, TINY)
    model = build_model(config)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'seg.pth')
    model = init_model(config, str(tmp_path / 'seg.pth'))
    panel = segmentation_panel({'fine-tune': (config, model)}, [3])
    page = opened(panel.png)
    truth = embedded.scene(0, 'val', 3, 64, grey=True).mask
    np.testing.assert_array_equal(tile(page, 0, 0, scene(3)), scene(3))
    over = overlay(scene(3), truth, np.array(embedded.PALETTE, np.uint8))
    np.testing.assert_array_equal(tile(page, 0, 1, scene(3)), over)
    (sample,) = images.packed(config).chosen([3])
    batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
    guess = model.test_step(batch)[0].pred_sem_seg.data[0].numpy()
    ious = [((guess == c) & (truth == c)).sum() / ((guess == c) | (truth == c)).sum() for c in np.union1d(guess, truth)]
    assert panel.numbers['fine-tune: mIoU of these images'] == pytest.approx(np.mean(ious))
    assert panel.numbers['fine-tune: pixels right'] == (guess == truth).mean()
    with pytest.raises(PictureError, match='DiscreteVAE segments nothing'):
        segmentation_panel({'x': (config, build_model(load_config(TOKENIZER)))}, [0])


def test_void_pixels_are_left_out_of_mean_iou():
    guess, truth = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 255, 1, 0]])
    assert mean_iou(areas(guess, truth, 3)) == (1 / 2 + 1 / 2) / 2
    assert np.isnan(mean_iou(areas(guess, torch.full((1, 4), 255), 3)))


def test_what_does_not_fit_is_refused(mim, tmp_path):
    config, model = mim
    with pytest.raises(PictureError, match='give CHECKPOINT after it: a backbone without weights'):
        load_backbone(config, None)
    with pytest.raises(PictureError, match='give CHECKPOINT after it: an untrained tokenizer'):
        load_tokenizer(load_config(TOKENIZER), None)
    with pytest.raises(ConfigError, match='PixelTarget has no visual tokens'):
        load_tokenizer(load_config(PIXELS), None)
    with pytest.raises(ConfigError, match='DiscreteVAE has no backbone'):
        load_backbone(load_config(TOKENIZER), 'x.pth')
    weights = model.state_dict()
    weights.pop('backbone.cls_token')
    torch.save(dict(state_dict=weights), tmp_path / 'cut.pth')
    with pytest.raises(CheckpointError, match=r'cut\.pth: does not fit .* "backbone\.cls_token"'):
        init_model(config, str(tmp_path / 'cut.pth'))
    with pytest.raises(CheckpointError, match=r'cut\.pth: the backbone does not fit'):
        load_backbone(config, str(tmp_path / 'cut.pth'))
