"""One self-contained HTML page of a suite: the table, the curves, and pictures of what the models learned."""

import html
import json
import traceback
from collections.abc import Callable
from pathlib import Path

from ..data import embedded
from ..engine.launch import terse_terminal
from . import curves, page, panels
from .leaderboard import BASELINE, Row, as_html, as_text, from_folder, write_all

SHOWN = list(range(8))  # validation images in the pictures: the first ones, not chosen ones
METRIC_NAMES = {'accuracy/top1': 'top-1 accuracy, %', 'mIoU': 'mIoU, %'}


def headline(found: list[Row]) -> str:
    """One sentence per task: pre-training against from scratch, with the spread and whether it exceeds it."""
    sentences = []
    compared = [row for row in found if row.delta is not None]
    for row in compared:
        mean, spread, count = row.delta
        base = row.mean - mean
        name = METRIC_NAMES.get(row.metric, row.metric).split(',')[0]
        several = sum((r.task, r.dataset) == (row.task, row.dataset) for r in compared) > 1
        how = f'{row.protocol} from {row.start}' if several else 'after pre-training'
        text = f'{name}: {row.mean:.1f} % {how}, {base:.1f} % from scratch'
        if count == 1:
            text += f' ({mean:+.1f}, one seed: no spread)'
        else:
            verdict = 'within' if abs(mean) <= spread else 'better by more than' if mean > 0 else 'worse by more than'
            text += f' ({mean:+.1f} ± {spread:.1f} over {count} seeds: {verdict} the spread)'
        sentences.append(text)
    return '. '.join(sentences) + '.' if sentences else 'No pair of runs to compare yet.'


def _section(title: str, make: Callable[[], str]) -> str:
    """A section, or a visible note of why it is missing: a broken picture must not cost the table."""
    try:
        body = make()
    except Exception as error:
        traceback.print_exc()
        body = f'<p class="note">This part could not be made: {html.escape(f"{type(error).__name__}: {error}")}</p>'
    return f'<h2>{html.escape(title)}</h2>\n{body}'


def _missing(what: str) -> str:
    return f'<p class="note">Not here: the suite has no finished stage of kind {what}.</p>'


def _curves(stages: list[dict]) -> str:
    scalars = [(stage, curves.read_scalars(stage['work_dir'])) for stage in stages]

    def of(kind: str, name: str) -> dict[str, list[curves.Curve]]:
        groups: dict[str, list[curves.Curve]] = {}
        for stage, found in scalars:
            if stage['kind'] == kind and name in found:
                groups.setdefault(stage['protocol'], []).append(found[name])
        return groups

    wanted = [
        ('tokenizer: reconstruction error', 'mean absolute error', of('tokenizer', 'reconstruction_error')),
        ('pre-training: loss', 'cross-entropy, nats', of('pretrain', 'loss')),
        ('classification', METRIC_NAMES['accuracy/top1'], of('classification', 'accuracy/top1')),
        ('classification: loss', 'training loss', of('classification', 'loss')),
        ('segmentation', METRIC_NAMES['mIoU'], of('segmentation', 'mIoU')),
        ('segmentation: loss', 'training loss', of('segmentation', 'loss')),
    ]
    drawn = [panel for panel in wanted if panel[2]]
    if not drawn:
        return '<p class="note">Not here: no scalars.json in any work_dir of the suite.</p>'
    svgs = [curves.draw(drawn[i : i + 2]) for i in range(0, len(drawn), 2)]
    return ''.join(f'<figure>{svg}</figure>' for svg in svgs)


def _legend() -> str:
    colours = zip(embedded.CLASSES, embedded.PALETTE, strict=True)
    spans = ''.join(f'<span><i style="background:rgb{colour}"></i>{name}</span>' for name, colour in colours)
    return f'<p class="legend">{spans}</p>'


def _reconstructions(stage: dict) -> str:
    config, model = panels.load_stage(stage)
    text = (
        '<p>The tokenizer turns every cell into one of its codes and can paint a code back. The pre-trained model sees '
        'the second column and guesses the codes of the hidden patches; the third column paints its guesses there.</p>'
    )
    png = panels.reconstruction_panel(config, model, SHOWN)
    return text + page.picture(png, 'image, masked image, predicted and true tokens')


def _segmentations(named: dict[str, dict]) -> str:
    models = {name: panels.load_stage(stage) for name, stage in named.items()}
    return _legend() + page.picture(panels.segmentation_panel(models, SHOWN), 'segmentations')


def _attention(stage: dict) -> str:
    config, model = panels.load_stage(stage)
    if config.test_dataloader.dataset.type != 'beit_mm.EmbeddedScenes':
        return '<p class="note">Not here: it needs the masks of the images, which these lie without.</p>'
    picture, numbers = panels.attention_panel(config, model, SHOWN)
    text = (
        f'<p>Where the red patch looks, in the last block of the pre-trained backbone. The patches that hold 60 % of '
        f"the attention overlap the query's own region with a Jaccard index of {numbers['attended']:.2f} (mean of 200 "
        f'validation images); as many patches at random places score {numbers["shuffled"]:.2f}, all patches '
        f'{numbers["everywhere"]:.2f}.</p>'
    )
    return text + page.picture(picture, 'attention maps')


def _credits() -> str:
    lines = [[p.name, p.credit, p.licence, f'{p.package}/{p.file}', p.sha256[:16]] for p in embedded.PHOTOGRAPHS]
    columns = ['material', 'by', 'licence', 'file in the wheel', 'sha256']
    return (
        '<p>Train images are cut from the left 70 % of each photograph, validation images from the right 30 %, in grey '
        f'with contrast normalised per region.</p>{page.table(columns, lines, codes=columns[3:])}'
    )


def _provenance(found: list[Row], stages: list[dict]) -> str:
    records = [record for row in found for record in row.records]
    newest = max(records, key=lambda record: record.date)
    commits = {
        f'beit_mm {r.revision["version"]}, commit {r.revision["commit"][:12] or "unknown"}'
        + (' with uncommitted changes' if r.revision['dirty'] else '')
        for r in records
    }
    facts = [
        ['code', '; '.join(sorted(commits))],
        ['device', '; '.join(sorted({r.device for r in records}))],
        ['versions', ', '.join(f'{k} {v}' for k, v in newest.versions.items())],
        ['seeds', ', '.join(str(seed) for seed in sorted({stage['seed'] for stage in stages}))],
    ]
    runs = [
        [s['name'], str(s['seed']), s['protocol'], s['config'], f'{s["seconds"]:.0f} s' if s.get('seconds') else '']
        for s in stages
    ]
    tested = [
        [r.config, str(r.seed), f'{r.metric} {r.value:.4g}', r.checkpoint_sha256[:12], r.date[:16]] for r in records
    ]
    columns = ['config', 'seed', 'result', 'sha256 of the weights', 'date (UTC)']
    return (
        '<p>Every number of the leaderboard is a mean over seeds of what <code>tools/test.py</code> says of the last '
        f'checkpoint of a run.</p>{_commands(stages)}{page.table(["", ""], facts)}'
        f'<h3>Runs</h3>{page.table(["stage", "seed", "protocol", "config", "time"], runs, codes=["config"])}'
        f'<h3>Evaluations</h3>{page.table(columns, tested, codes=["config", columns[3]])}'
    )


def _commands(stages: list[dict]) -> str:
    """How to train and test each stage of the first seed by hand."""
    lines = []
    for stage in stages:
        if stage['seed'] != stages[0]['seed'] or 'load_from' not in stage:
            continue
        changes = ''.join(f' {k}={v}' for k, v in (stage.get('options') or {}).items())
        changes = f' --cfg-options{changes}' if changes else ''
        start = f' --load-from {stage["load_from"]}' if stage['load_from'] else ''
        place = f' --work-dir {stage["work_dir"]}'
        lines.append(f'python tools/train.py {stage["config"]} --seed {stage["seed"]}{place}{start}{changes}')
        lines.append(f'python tools/test.py {stage["config"]} {stage["checkpoint"]}{changes}')
    return f'<pre><code>{html.escape(chr(10).join(lines))}</code></pre>' if lines else ''


def build(title: str, note: str, found: list[Row], sections: list[str], out: str | Path) -> Path:
    """Write the page: title, result, tables, then the sections as they are."""
    body = f"""<h1>{html.escape(title)}</h1>
<p class="result">{html.escape(headline(found))}</p>
<p class="note">{html.escape(note)}</p>
<h2>Leaderboard</h2>
<p class="note">± is the sample standard deviation over seeds; differences are paired by seed.</p>
{as_html(found)}
{''.join(sections)}"""
    out = Path(out)
    out.write_text(page.whole(title, body))
    return out


def demo_report(root: str | Path, out: str | Path) -> Path:
    """Leaderboard files and page of a suite's root; prints the table and the result.

    Raises FileNotFoundError without suite.json, RecordError without a record.
    """
    terse_terminal()
    root = Path(root)
    if not (root / 'suite.json').is_file():
        raise FileNotFoundError(f'{root}: holds no suite.json; make one with: python tools/benchmark.py SUITE')
    index = json.loads((root / 'suite.json').read_text())
    stages = [stage for stage in index['stages'] if stage['checkpoint']]
    found = from_folder(root)
    write_all(found, root)
    first = {stage['name']: stage for stage in reversed(stages)}  # the first seed's
    kinds = {s['kind']: s for s in first.values()}
    segmentors = {s['protocol']: s for s in first.values() if s['kind'] == 'segmentation'}
    segmentors = dict(sorted(segmentors.items(), key=lambda item: BASELINE in item[0]))
    pretrain = kinds.get('pretrain')
    unfinished = [f'{s["name"]} (seed {s["seed"]})' for s in index['stages'] if not s['checkpoint']]
    note = index.get('note', '') + (f' Not finished: {", ".join(unfinished)}.' if unfinished else '')
    sections = [
        _section('Training curves', lambda: _curves(stages)),
        _section('What is behind the mask', lambda: _reconstructions(pretrain) if pretrain else _missing('pretrain')),
        _section('Attention', lambda: _attention(pretrain) if pretrain else _missing('pretrain')),
        _section('Segmentation', lambda: _segmentations(segmentors) if segmentors else _missing('segmentation')),
        _section('How these numbers were made', lambda: _provenance(found, stages)),
        _section('Photographs', _credits),
    ]
    print('\n' + as_text(found))
    print('\n' + headline(found))
    return build(index['title'], note, found, sections, out)
