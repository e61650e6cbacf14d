"""One self-contained HTML page of a suite: the table, the curves, and pictures of what the models learned."""

import base64
import html
import json
import traceback
from collections.abc import Callable
from pathlib import Path

from ..data import embedded
from . import curves, panels
from .leaderboard import BASELINE, Row, as_html, as_text, rows, write_all
from .records import read_all

SHOWN = list(range(6))  # validation images in the pictures: the first ones, not chosen ones
STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --paper: #fff; --line: #d1d5db; --soft: #f3f4f6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --paper: #111827; --line: #374151; --soft: #1f2937; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin-bottom: .3rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); }
.result { font-size: 1.15rem; background: var(--soft); padding: .8rem 1rem; border-radius: .4rem; }
.note { color: #6b7280; font-size: .9rem; } figure { margin: 1rem 0; overflow-x: auto; }
figure svg, figure img { background: #fff; max-width: 100%; height: auto; border-radius: .3rem; }
.legend span { display: inline-block; margin-right: .9rem; white-space: nowrap; }
.legend i { display: inline-block; width: .8rem; height: .8rem; margin-right: .3rem; }
code { background: var(--soft); padding: .1rem .3rem; }
"""
METRIC_NAMES = {'accuracy/top1': 'top-1 accuracy, %', 'mIoU': 'mIoU, %'}


def headline(found: list[Row]) -> str:
    """One sentence per task: pre-training against from scratch, with the spread and whether it exceeds it."""
    sentences = []
    for row in found:
        if row.delta is None:
            continue
        mean, spread, count = row.delta
        base = row.mean - mean
        name = METRIC_NAMES.get(row.metric, row.metric).split(',')[0]
        text = f'{name}: {row.mean:.1f} % after pre-training, {base:.1f} % from scratch'
        if count == 1:
            text += f' ({mean:+.1f}, one seed: no spread)'
        else:
            verdict = 'more than' if mean > spread else 'not more than'
            text += f' ({mean:+.1f} ± {spread:.1f} over {count} seeds: {verdict} the spread)'
        sentences.append(text)
    return '. '.join(sentences) + '.' if sentences else 'No pair of runs to compare yet.'


def _png(data: bytes, caption: str) -> str:
    encoded = base64.b64encode(data).decode()
    return f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{encoded}"></figure>'


def _section(title: str, make: Callable[[], str]) -> str:
    """A section, or a visible note of why it is missing: a broken picture must not cost the table."""
    try:
        body = make()
    except Exception as error:
        traceback.print_exc()
        body = f'<p class="note">This part could not be made: {html.escape(f"{type(error).__name__}: {error}")}</p>'
    return f'<h2>{html.escape(title)}</h2>\n{body}'


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
    return text + _png(panels.reconstruction_panel(config, model, SHOWN), 'reconstructions from predicted tokens')


def _segmentations(named: dict[str, dict]) -> str:
    models = {name: panels.load_stage(stage) for name, stage in named.items()}
    return _legend() + _png(panels.segmentation_panel(models, SHOWN), 'segmentations')


def _attention(stage: dict) -> str:
    config, model = panels.load_stage(stage)
    picture, numbers = panels.attention_panel(config, model, SHOWN)
    text = (
        f'<p>Where the red patch looks, in the last block of the pre-trained backbone. The patches that hold 60 % of '
        f"the attention overlap the query's own region with a Jaccard index of {numbers['attended']:.2f} (mean of 200 "
        f'validation images; attending to everything would score {numbers["everywhere"]:.2f}).</p>'
    )
    return text + _png(picture, 'attention maps')


def _credits() -> str:
    lines = ''.join(
        f'<tr><td>{p.name}</td><td>{html.escape(p.credit)}</td><td>{p.licence}</td><td>{p.package}/{p.file}</td>'
        f'<td><code>{p.sha256[:12]}</code></td></tr>'
        for p in embedded.PHOTOGRAPHS
    )
    head = '<tr><th>material</th><th>by</th><th>licence</th><th>file in the wheel</th><th>sha256</th></tr>'
    return (
        '<p>Train images are cut from the left 70 % of each photograph, validation images from the right 30 %, in grey '
        f'with contrast normalised per region.</p><table>{head}{lines}</table>'
    )


def _provenance(found: list[Row], stages: list[dict]) -> str:
    record = found[0].records[0]
    facts = {
        'code': f'beit_mm {record.revision["version"]}, commit {record.revision["commit"][:12] or "unknown"}'
        + (' with uncommitted changes' if record.revision['dirty'] else ''),
        'device': record.device,
        'versions': ', '.join(f'{k} {v}' for k, v in record.versions.items()),
        'seeds': ', '.join(str(seed) for seed in sorted({stage['seed'] for stage in stages})),
    }
    facts_html = ''.join(f'<tr><th>{k}</th><td>{html.escape(v)}</td></tr>' for k, v in facts.items())
    runs = ''.join(
        f'<tr><td>{s["name"]}</td><td>{s["seed"]}</td><td><code>{html.escape(s["config"])}</code></td>'
        f'<td>{s["seconds"]:.0f} s</td></tr>'
        for s in stages
        if s.get('seconds')
    )
    head = '<tr><th>stage</th><th>seed</th><th>config</th><th>time</th></tr>'
    return f'<table>{facts_html}</table><h3>Runs</h3><table>{head}{runs}</table>'


def build(title: str, note: str, found: list[Row], sections: list[str], out: str | Path) -> Path:
    """Write the page: title, result, tables, then the sections as they are."""
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
<p class="result">{html.escape(headline(found))}</p>
<p class="note">{html.escape(note)}</p>
<h2>Leaderboard</h2>
{as_html(found)}
{''.join(sections)}
</body></html>
"""
    out = Path(out)
    out.write_text(page)
    return out


def demo_report(root: str | Path, out: str | Path) -> Path:
    """Leaderboard files and page of a suite's root; prints the table and the result."""
    root = Path(root)
    index = json.loads((root / 'suite.json').read_text())
    stages = [stage for stage in index['stages'] if stage['checkpoint']]
    found = rows(read_all(root / 'results'))
    write_all(found, root)
    first = {stage['name']: stage for stage in reversed(stages)}  # the first seed's
    segmentors = {s['protocol']: s for s in first.values() if s['kind'] == 'segmentation'}
    kinds = {s['kind']: s for s in first.values()}
    sections = [_section('Training curves', lambda: _curves(stages))]
    if 'pretrain' in kinds:
        sections.append(_section('What is behind the mask', lambda: _reconstructions(kinds['pretrain'])))
        sections.append(_section('Attention', lambda: _attention(kinds['pretrain'])))
    if segmentors:
        ordered = dict(sorted(segmentors.items(), key=lambda item: item[0] == BASELINE))
        sections.append(_section('Segmentation', lambda: _segmentations(ordered)))
    sections.append(_section('How these numbers were made', lambda: _provenance(found, stages)))
    sections.append(_section('Photographs', _credits))
    print('\n' + as_text(found))
    print('\n' + headline(found))
    return build(index['title'], index['note'], found, sections, out)
