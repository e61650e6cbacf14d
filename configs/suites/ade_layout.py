"""Segmentation by the commands of ADE20K, on embedded scenes in its layout: pre-trained against scratch, two heads.

    python tools/prepare_data.py export data/scenes --format ade20k --train 4000 --val 1000
    python tools/benchmark.py configs/suites/ade_layout.py --seeds 3

Ours, no paper row. docs/segmentation.md has what it gave.
"""

title = "Segmentation in ADE20K's layout, on embedded data"
note = (
    'Embedded data: mosaics of photographs that ship with scikit-image and scikit-learn, as files, not ADE20K. '
    'Pre-trained and from-scratch models share recipe, steps and the same 256 labelled images.'
)
root = 'work_dirs/ade_layout'

_segment = 'configs/segmentation/beit-mini-p8_{}_1xb32-60_scenes-64.py'
stages = [
    dict(name='tokenizer', kind='tokenizer', config='configs/tokenizer/dvae-512_1xb64-300_scenes-32.py'),
    dict(
        name='pretrain',
        kind='pretrain',
        config='configs/pretrain/beit-mini-p8_dvae_1xb48-1500_scenes-64.py',
        options={'model.target.checkpoint': '{tokenizer}'},
    ),
    dict(name='setr-pup', kind='segmentation', config=_segment.format('setr-pup'), start='pretrain'),
    dict(name='setr-pup-scratch', kind='segmentation', config=_segment.format('setr-pup-scratch')),
    dict(name='upernet', kind='segmentation', config=_segment.format('upernet'), start='pretrain'),
    dict(name='upernet-scratch', kind='segmentation', config=_segment.format('upernet-scratch')),
]
