"""HTML that needs nothing but itself: style, tables, pictures inside the page. Light or dark as the reader has it."""

import base64
import html
from collections.abc import Sequence

STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --paper: #fff; --line: #d1d5db; --soft: #f3f4f6; --dim: #6b7280; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --paper: #111827; --line: #374151; --soft: #1f2937; --dim: #9ca3af; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 68rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin-bottom: .3rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); }
th { white-space: nowrap; } td code { white-space: nowrap; }
.result { font-size: 1.15rem; background: var(--soft); padding: .8rem 1rem; border-radius: .4rem; }
.note { color: var(--dim); font-size: .9rem; } figure { margin: 1rem 0; overflow-x: auto; }
figure svg, figure img { max-width: 100%; height: auto; } figure svg { color: var(--ink); width: 100%; }
figure img { background: #fff; border-radius: .3rem; }
.legend span { display: inline-block; margin-right: .9rem; white-space: nowrap; }
.legend i { display: inline-block; width: .8rem; height: .8rem; margin-right: .3rem; }
code { background: var(--soft); padding: .1rem .3rem; font-size: .8rem; }
pre { background: var(--soft); padding: .6rem .8rem; overflow-x: auto; } pre code { padding: 0; }
"""


def whole(title: str, body: str) -> str:
    """A complete page around the HTML `body`."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">\n'
        f'<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n'
    )


def table(columns: Sequence[str], cells: Sequence[Sequence[str]], codes: Sequence[str] = ()) -> str:
    """A table of text; columns named in `codes` are set as code."""
    head = ''.join(f'<th>{html.escape(c)}</th>' for c in columns)
    lines = []
    for line in cells:
        escaped = [html.escape(cell) for cell in line]
        marked = [f'<code>{e}</code>' if c in codes and e else e for c, e in zip(columns, escaped, strict=True)]
        lines.append('<tr>' + ''.join(f'<td>{m}</td>' for m in marked) + '</tr>')
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def picture(png: bytes, caption: str) -> str:
    """A PNG inside the page; `caption` is what a screen reader says."""
    encoded = base64.b64encode(png).decode()
    return f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{encoded}"></figure>'
