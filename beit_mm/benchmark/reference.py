"""Numbers of others, each with its source, for columns and rows of their own: none of them was measured here."""

from typing import NamedTuple

PAPER, RELEASE, PASSL, TIMM = 'paper', 'official release', 'PASSL', 'timm'
MMPRETRAIN, MMSEG = 'mmpretrain', 'mmseg'
SOURCES = {  # what each is, and where it was read
    PAPER: 'BEiT, arXiv 2106.08254 (v2), the table that is named',
    RELEASE: 'released weights as their authors tested them: microsoft/unilm, beit/README.md and its evaluation logs',
    PASSL: 'PaddlePaddle/PASSL, configs/beit/README.md: weights ported from the release, not trained there',
    TIMM: 'huggingface/pytorch-image-models, results/results-imagenet.csv: the released weights, tested there',
    MMPRETRAIN: 'open-mmlab/mmpretrain 1.2, configs/beit/metafile.yml',
    MMSEG: 'open-mmlab/mmsegmentation 1.2, configs/beit/metafile.yaml: trained with mmseg 0.23',
}
HEADS = ('UPerNet', 'SETR-PUP')  # of segmentors: a protocol may begin with one
SCRATCH = 'from scratch'
TUNED, TUNED_640, MULTI_SCALE = 'intermediate fine-tune', 'intermediate fine-tune, 640 px', 'multi-scale and flip'


class Reference(NamedTuple):
    """One number: it stands beside measured rows of the same task, data set, preset and protocol.

    value: top-1 or mIoU in percent with the digits that were published, single scale unless the protocol says
    otherwise. detail: the table of the paper and
    what it is called there. top5 and mAcc in percent; crop: the share of the short side that is cut out to be tested;
    parameters: millions, with the classifier.
    """

    task: str
    dataset: str
    preset: str
    protocol: str
    value: str
    source: str
    detail: str = ''
    top5: str | None = None
    mAcc: str | None = None
    crop: float | None = None
    parameters: float | None = None

    @property
    def said(self) -> str:
        """`83.2 (paper, Table 1)`."""
        return f'{self.value} ({", ".join(filter(None, [self.source, self.detail]))})'


def _imagenet(preset: str, protocol: str, value: str, source: str = PAPER, detail: str = '', **more) -> Reference:
    return Reference('classification', 'ImageNet', preset, protocol, value, source, detail, **more)


def _cifar100(preset: str, protocol: str, value: str, detail: str = 'Table 11') -> Reference:
    return Reference('classification', 'CIFAR100', preset, protocol, value, PAPER, detail)


def _ade20k(preset: str, protocol: str, value: str, source: str = PAPER, detail: str = '', **more) -> Reference:
    return Reference('segmentation', 'ADE20K', preset, protocol, value, source, detail, **more)


def _both(protocol: str, table: str, imagenet: str, ade20k: str, head: str, preset: str = 'beit base'):
    yield _imagenet(preset, protocol, imagenet, detail=table)
    yield _ade20k(preset, f'{head}, {protocol}', ade20k, detail=table)


def _scales(preset: str, protocol: str, single: str, several: str, source: str = PAPER, detail: str = ''):
    yield _ade20k(preset, f'UPerNet, {protocol}', single, source, detail)
    yield _ade20k(preset, f'UPerNet, {protocol}, {MULTI_SCALE}', several, source, detail)


def _released(preset: str, protocol: str, value: str, top5: str) -> Reference:
    return _imagenet(preset, protocol, value, RELEASE, top5=top5)


def _ported(preset: str, protocol: str, value: str, top5: str, crop: float, parameters: float) -> Reference:
    return _imagenet(preset, protocol, value, PASSL, top5=top5, crop=crop, parameters=parameters)


REFERENCES: tuple[Reference, ...] = (
    _imagenet('beit base', 'fine-tune', '83.2', detail='Table 1'),
    _imagenet('beit large', 'fine-tune', '85.2', detail='Table 1'),
    _imagenet('beit base', 'fine-tune, 384 px', '84.6', detail='Table 1'),
    _imagenet('beit large', 'fine-tune, 384 px', '86.3', detail='Table 1'),
    # what the paper calls from scratch are others' models: DeiT, and the ViT paper's
    _imagenet('vit base', SCRATCH, '81.8', detail='Table 1, DeiT-B'),
    _imagenet('vit base', f'{SCRATCH}, 384 px', '83.1', detail='Table 1, DeiT-B'),
    _imagenet('vit base', f'{SCRATCH}, 384 px', '77.9', detail='Table 1, ViT-B'),
    _imagenet('vit large', f'{SCRATCH}, 384 px', '76.5', detail='Table 1, ViT-L'),
    _imagenet('vit base', 'fine-tune after supervised ImageNet-22K, 384 px', '84.0', detail='Table 1'),
    _imagenet('vit large', 'fine-tune after supervised ImageNet-22K, 384 px', '85.2', detail='Table 1'),
    _imagenet('vit base', 'fine-tune after masked patches of JFT-300M, 384 px', '79.9', detail='Table 1'),
    _imagenet('iGPT-1.36B', 'fine-tune', '66.5', detail='Table 1'),
    _imagenet('vit base', 'fine-tune after DINO', '82.8', detail='Table 1'),
    _imagenet('vit base', 'fine-tune after MoCo v3', '83.2', detail='Table 1'),
    _imagenet('vit large', 'fine-tune after MoCo v3', '84.1', detail='Table 1'),
    _ade20k('vit base', 'SETR-PUP, supervised pre-training', '45.3', detail='Table 3'),
    _ade20k('vit base', 'SETR-PUP, fine-tune after DINO', '44.1', detail='Table 3'),
    _ade20k('beit base', 'SETR-PUP, fine-tune', '45.6', detail='Table 3'),
    _ade20k('beit base', 'SETR-PUP, intermediate fine-tune', '47.7', detail='Table 3'),
    *_both('fine-tune', 'Table 4, 300 epochs', '82.86', '44.65', 'SETR-PUP'),
    *_both('fine-tune, random masks', 'Table 4', '82.77', '42.93', 'SETR-PUP'),
    *_both('fine-tune, pixels', 'Table 4', '81.04', '41.38', 'SETR-PUP'),
    *_both('fine-tune, pixels, random masks', 'Table 4', '80.50', '37.09', 'SETR-PUP'),
    *_both('fine-tune, all tokens', 'Table 4', '82.59', '40.93', 'SETR-PUP'),
    *_both('fine-tune, all tokens, no mask', 'Table 4', '81.67', '36.73', 'SETR-PUP'),
    *_both('fine-tune', 'Table 4, 800 epochs', '83.19', '45.58', 'SETR-PUP'),
    *_both('fine-tune', 'Table 5, 300 epochs', '82.86', '44.86', 'UPerNet'),
    *_both('fine-tune', 'Table 5, LayerScale alone', '83.00', '45.43', 'UPerNet', 'beit, mixed base'),
    *_both('fine-tune', 'Table 5, 300 epochs', '83.22', '45.70', 'UPerNet', 'beit_plus base'),
    _imagenet('beit_plus base', f'{TUNED}, 384 px', '86.8', detail='Table 6'),
    _imagenet('beit_plus large', f'{TUNED}, 384 px', '88.4', detail='Table 6'),
    _imagenet('beit_plus large', f'{TUNED}, 512 px', '88.6', detail='Table 6'),
    _imagenet('beit_plus large', f'{TUNED}, 512 px, 70 M images of their own', '89.5', detail='Table 6'),
    _imagenet('vit large', 'fine-tune after supervised ImageNet-22K, 512 px', '85.3', detail='Table 6'),
    _imagenet('vit large', 'fine-tune after supervised JFT-300M, 512 px', '87.76', detail='Table 6'),
    *_scales('swin base', TUNED_640, '50.0', '51.7', detail='Table 7'),
    *_scales('swin large', TUNED_640, '52.1', '53.5', detail='Table 7'),
    *_scales('beit_plus base', TUNED_640, '53.6', '54.2', detail='Table 7'),
    *_scales('beit_plus large', TUNED_640, '56.7', '57.0', detail='Table 7'),
    *_scales('beit_plus large', f'{TUNED_640}, 70 M images of their own', '57.9', '58.4', detail='Table 7'),
    _imagenet('vit base', 'linear probe of DINO', '78.2', detail='Table 9'),
    _imagenet('vit base', 'linear probe of MoCo v3', '76.7', detail='Table 9'),
    _imagenet('vit large', 'linear probe of MoCo v3', '77.6', detail='Table 9'),
    _imagenet('iGPT-L', 'linear probe', '65.2', detail='Table 9'),
    _imagenet('iGPT-XL', 'linear probe', '68.7', detail='Table 9'),
    _imagenet('iGPT-XL', 'linear probe', '72.0', detail='Table 9, with an asterisk'),
    _imagenet('beit base', 'linear probe', '56.7', detail='Table 9'),
    _imagenet('beit large', 'linear probe', '73.5', detail='Table 9'),
    # Table 10: DINO for 400 epochs, BEiT for 300
    _ade20k('vit base', 'SETR-PUP, fine-tune after DINO', '44.08', detail='Table 10, 400 epochs'),
    *_both('fine-tune after BEiT + DINO', 'Table 10', '82.9', '46.85', 'SETR-PUP'),
    _cifar100('vit base', f'{SCRATCH}, 384 px', '48.5'),
    _cifar100('vit base', 'fine-tune after supervised ImageNet, 384 px', '87.1'),
    _cifar100('vit base', 'fine-tune after DeiT', '90.8'),
    _cifar100('vit base', 'fine-tune after DINO', '91.7'),
    _cifar100('vit base', 'fine-tune after MoCo v3', '87.1'),
    _cifar100('beit base', 'fine-tune', '90.1'),
    _cifar100('beit base', TUNED, '91.8'),
    _released('beit_plus base', 'fine-tune after ImageNet-22K', '83.7', '96.6'),
    _released('beit_plus large', 'fine-tune after ImageNet-22K', '86.0', '97.6'),
    _released('beit_plus base', TUNED, '85.2', '97.6'),
    _released('beit_plus base', f'{TUNED}, 384 px', '86.820', '98.124'),
    _released('beit_plus large', TUNED, '87.396', '98.282'),
    _released('beit_plus large', f'{TUNED}, 384 px', '88.408', '98.602'),
    _released('beit_plus large', f'{TUNED}, 512 px', '88.600', '98.658'),
    *_scales('beit_plus large', TUNED_640, '56.7', '57.0', RELEASE),
    _ade20k('beit_plus base', f'UPerNet, {TUNED_640}', '53.61', RELEASE, 'its log', mAcc='64.82'),
    _ade20k('beit_plus base', f'UPerNet, {TUNED_640}, {MULTI_SCALE}', '54.26', RELEASE, 'its log', mAcc='65.28'),
    _ported('beit_plus base', f'{TUNED}, crop 0.9', '85.21', '97.66', 0.9, 86.5),
    _ported('beit_plus base', f'{TUNED}, 384 px', '86.81', '98.14', 1.0, 86.7),
    _ported('beit_plus large', f'{TUNED}, crop 0.9', '87.48', '98.30', 0.9, 304.4),
    _ported('beit_plus large', f'{TUNED}, 384 px', '88.40', '98.60', 1.0, 305.0),
    _ported('beit_plus large', f'{TUNED}, 512 px', '88.60', '98.66', 1.0, 305.7),
    _imagenet('beit_plus base', f'{TUNED}, crop 0.9', '85.238', TIMM, crop=0.9),
    _imagenet('beit_plus base', f'{TUNED}, 384 px', '86.814', TIMM, crop=1.0),
    _imagenet('beit_plus large', f'{TUNED}, crop 0.9', '87.486', TIMM, crop=0.9),
    _imagenet('beit_plus large', f'{TUNED}, 384 px', '88.380', TIMM, crop=1.0),
    _imagenet('beit_plus large', f'{TUNED}, 512 px', '88.576', TIMM, crop=1.0),
    _imagenet('beit_plus base', 'fine-tune', '83.10', MMPRETRAIN, 'pre-trained for 300 epochs by mmselfsup'),
    _imagenet('beit_plus base', TUNED, '85.28', MMPRETRAIN, 'converted', top5='97.59'),
    *_scales('beit_plus base', TUNED_640, '53.08', '53.84', MMSEG),
    *_scales('beit_plus large', TUNED_640, '56.33', '56.84', MMSEG),
)


def references_of(task: str, dataset: str, preset: str, protocol: str) -> list[Reference]:
    """What others say of the same thing, in the order of REFERENCES."""
    return [one for one in REFERENCES if one[:4] == (task, dataset, preset, protocol)]
