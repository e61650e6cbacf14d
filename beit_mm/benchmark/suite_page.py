"""The page of a suite: its leaderboard, and pictures of what the models of its first seed learned."""

import functools
import html
import json
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from ..data import embedded
from ..engine.launch import terse_terminal
from . import page
from .leaderboard import BASELINE, from_folder
from .pictures.canvas import Panel
from .pictures.gallery import Wishes, numbers_table, panel_of
from .report import conclusions, whole, write_all
from .tables import as_text

SHOWN = 4  # validation images in the pictures: the first ones, not chosen ones
LESSONS = (  # kind of picture, title, what to look at; all of the pre-training stage
    ('masks', 'What is hidden', 'Blocks rather than single patches, so that a patch cannot be guessed from the next.'),
    ('tokens', 'Visual tokens', 'The tokenizer turns every cell into one of its codes, and can paint a code back.'),
    (
        'reconstruction',
        'What is behind the mask',
        'The model sees the second column and guesses the tokens of the hidden patches.',
    ),
    ('attention', 'Where a patch looks', 'Self-attention of the last block from one patch; every map to its maximum.'),
    ('features', 'Features', 'Images that the backbone, without any label, puts near each other.'),
    ('relative-bias', 'What it knows of places', 'Positions are learned, not given.'),
)


def config_of(stage: dict) -> str:
    """The config of a finished stage as it ran, which the run left in its work_dir."""
    return str(Path(stage['work_dir']) / Path(stage['config']).name)


def wishes_of(stage: dict, **more) -> Wishes:
    """What gallery.py needs to draw of a stage."""
    return Wishes(config_of(stage), stage['checkpoint'], indices=list(range(SHOWN)), **more)


def _part(title: str, text: str, make: Callable[[], Panel]) -> str:
    """A picture under its title, or a visible note of why it is missing: it must not cost the page."""
    try:
        panel = make()
        body = page.picture(panel.png, panel.caption) + numbers_table(panel)
    except Exception as error:
        traceback.print_exc()
        body = f'<p class="note">This part could not be made: {html.escape(f"{type(error).__name__}: {error}")}</p>'
    return f'<h3>{html.escape(title)}</h3><p>{html.escape(text)}</p>{body}'


def lessons(stages: Sequence[dict]) -> str:
    """Pictures of the first pre-training stage, and of the segmentors beside each other; '' without any."""
    parts = []
    pretrained = next((stage for stage in stages if stage['kind'] == 'pretrain'), None)
    if pretrained:
        asked = functools.cache(lambda: wishes_of(pretrained))  # one backbone for all of them
        parts += [_part(title, text, lambda k=kind: panel_of(k, asked())) for kind, title, text in LESSONS]
    segmentors = sorted((s for s in stages if s['kind'] == 'segmentation'), key=lambda s: BASELINE in s['protocol'])
    if segmentors:
        first, *others = segmentors
        against = [(config_of(stage), stage['checkpoint']) for stage in others]
        text = 'Predictions of the segmentors beside the truth.'
        parts.append(_part('Segmentation', text, lambda: panel_of('segmentation', wishes_of(first, against=against))))
    return ''.join(parts)


def photographs(stages: Sequence[dict]) -> str:
    """Whose photographs the embedded images are cut from; '' where no stage is of such images."""
    if not any(re.search('embedded|mosaics|scenes', Path(stage['config']).stem) for stage in stages):
        return ''
    lines = [[p.name, p.credit, p.licence, f'{p.package}/{p.file}', p.sha256[:16]] for p in embedded.PHOTOGRAPHS]
    columns = ['material', 'by', 'licence', 'file in the wheel', 'sha256']
    return (
        '<p>Training images are cut from the left 70 % of each photograph, validation images from the right 30 %.</p>'
        + page.table(columns, lines, codes=columns[3:])
    )


def suite_page(root: str | Path, out: str | Path) -> Path:
    """Leaderboard files and page of a suite's root; prints the table and what it says.

    Raises FileNotFoundError without suite.json, RecordError without a record.
    """
    terse_terminal()
    root = Path(root)
    if not (root / 'suite.json').is_file():
        raise FileNotFoundError(f'{root}: holds no suite.json; make one with: python tools/benchmark.py SUITE')
    index = json.loads((root / 'suite.json').read_text())
    stages = [stage for stage in index['stages'] if stage['checkpoint']]
    unfinished = [f'{s["name"]} (seed {s["seed"]})' for s in index['stages'] if not s['checkpoint']]
    note = index.get('note', '') + (f' Not finished: {", ".join(unfinished)}.' if unfinished else '')
    found = from_folder(root)
    write_all(found, root, index['title'], note)
    first = {stage['name']: stage for stage in reversed(stages)}  # the first seed's
    sections = {
        'What it learned': lessons(list(reversed(first.values()))),
        'Photographs': photographs(stages),
    }
    pictures = [page.section(title, body) for title, body in sections.items() if body]
    out = Path(out)
    out.write_text(whole(found, index['title'], note, pictures, stages))
    print('\n' + as_text(found.rows))
    print('\n'.join(['', *conclusions(found.rows), *found.notes]))
    return out
