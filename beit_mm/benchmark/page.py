"""HTML that needs nothing but itself: style, script, tables and pictures are in it. Light or dark as the reader's."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent


def whole(title: str, head: str, body: str, foot: str = '') -> str:
    """A complete page: HTML of a `head` above the navigation, a `body` of sections, and a `foot`.

    The navigation leads to every `<h2 id="...">` of the body.
    """
    style, script = ((HERE / f'page.{kind}').read_text() for kind in ('css', 'js'))
    links = ''.join(f'<a href="#{part.split(chr(34))[0]}">{_heading(part)}</a>' for part in body.split('<h2 id="')[1:])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">'
        f'<title>{html.escape(title)}</title>\n<style>\n{style}</style></head><body class="hide-cost">\n'
        f'<header>{head}</header>\n<nav aria-label="Sections"><div>{links}</div></nav>\n<main>\n{body}\n</main>\n'
        f'<footer>{foot}</footer>\n<script>\n{script}</script>\n</body></html>\n'
    )


def _heading(part: str) -> str:
    return part.split('>', 1)[1].split('</h2>')[0]


def section(title: str, body: str) -> str:
    """A part of the page under a heading that the navigation leads to."""
    anchor = ''.join(letter if letter.isalnum() else '-' for letter in title.lower())
    return f'<h2 id="{anchor}">{html.escape(title)}</h2>\n{body}\n'


def table(columns: Sequence[str], cells: Sequence[Sequence[str]], codes: Sequence[str] = ()) -> str:
    """A plain table of text; columns named in `codes` are set as code."""
    head = ''.join(f'<th>{html.escape(c)}</th>' for c in columns)
    lines = []
    for line in cells:
        escaped = [html.escape(cell) for cell in line]
        marked = [f'<code>{e}</code>' if c in codes and e else e for c, e in zip(columns, escaped, strict=True)]
        lines.append('<tr>' + ''.join(f'<td>{m}</td>' for m in marked) + '</tr>')
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def picture(png: bytes, caption: str) -> str:
    """A PNG inside the page; `caption` is what a screen reader says, and stands below it where the page is narrow."""
    encoded, said = base64.b64encode(png).decode(), html.escape(caption)
    return (
        f'<figure><img alt="{said}" src="data:image/png;base64,{encoded}">'
        f'<figcaption class="narrow">{said}</figcaption></figure>'
    )
