"""The leaderboard inside a Markdown file: a block between two comments that is made, never typed."""

import re
from collections.abc import Sequence
from pathlib import Path

from .leaderboard import Row
from .records import RecordError
from .tables import as_markdown

BEGIN, END = '<!-- leaderboard: {} -->', '<!-- end of leaderboard -->'


def updated(text: str, results: str, rows: Sequence[Row], name: str = 'the file') -> str:
    """`text` with the tables of `rows` between the comments that name the folder `results`.

    Raises RecordError without such a block.
    """
    begin = BEGIN.format(results)
    found = re.search(f'{re.escape(begin)}\n.*?{re.escape(END)}', text, re.DOTALL)
    if not found:
        raise RecordError(f'{name}: has no block for {results}. Put these two lines where it shall be:\n{begin}\n{END}')
    return text[: found.start()] + f'{begin}\n{as_markdown(rows, narrow=True)}{END}' + text[found.end() :]


def refresh(path: str | Path, results: str, rows: Sequence[Row], check: bool = False) -> str:
    """Bring the block of a file up to date and say so. check: only look; raises RecordError if it is stale."""
    path = Path(path)
    if not path.is_file():
        raise RecordError(f'{path}: there is no such file to put the leaderboard of {results} into')
    before = path.read_text()
    after = updated(before, results, rows, str(path))
    if before == after:
        return f'{path}: up to date'
    if check:
        raise RecordError(
            f'{path}: its leaderboard is not that of {results}; python tools/leaderboard.py {results} --readme {path}'
        )
    path.write_text(after)
    return f'{path}: brought up to date'
