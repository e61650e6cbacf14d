"""Are shards what their index says: `tools/prepare_data.py verify --format shards`."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .shard_index import FOLDER, ShardError, ShardIndex, sha256_of
from .shard_reads import address_of
from .shard_scan import scan

if TYPE_CHECKING:
    from .verify import Report, Scope

SHOWN = 5  # in a message
MEND = 'put it back as it was, or remove the index and make it anew: prepare_data.py shards FOLDER --index'


class _Addresses(Sequence):
    """The addresses of all images, made as they are asked for."""

    def __init__(self, root: Path, index: ShardIndex) -> None:
        self.root, self.index = str(root), index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> str:
        at = self.index.place(range(len(self))[number])
        return address_of(self.root, self.index.shards[at.shard].name, at.offset, at.size, at.name)


def verify_shards(root: Path, scope: 'Scope', report: 'Report') -> Sequence[str]:
    """Put into the report what is wrong: every byte of index and shards is read. Returns the images to decode."""
    try:
        index = ShardIndex(root / FOLDER)
    except ShardError as error:
        report.problem(str(error), 'as it says')
        return []
    if report_index(index, scope, report):
        return []
    with ProcessPoolExecutor(max(1, scope.jobs), mp_context=get_context('fork')) as pool:
        jobs = [(str(root), str(index.folder), number) for number in range(len(index.shards))]
        wrong = [text for text in pool.map(_why_unfit, jobs) if text]
    size = sum(shard.bytes for shard in index.shards) / 1e6
    report.fact(
        f'{root}: {len(index)} images in {len(index.shards)} shards, {size:,.1f} MB; {len(jobs) - len(wrong)} shards '
        f'are as they were indexed'
    )
    if wrong:
        more = f'\n          {len(wrong) - SHOWN} more' if len(wrong) > SHOWN else ''
        report.problem('\n          '.join(wrong[:SHOWN]) + more, MEND)
    names = {shard.name for shard in index.shards}
    if stray := sorted(path.name for path in root.glob('*.tar') if path.name not in names):
        report.problem(f'{root}: not in the index: {", ".join(stray[:SHOWN])} ({len(stray)})', f'remove, or {MEND}')
    return [] if wrong else _Addresses(root, index)


def report_index(index: ShardIndex, scope: 'Scope', report: 'Report') -> bool:
    """Whether the arrays of an index are damaged; labels are looked at, too."""
    changed = [name for name, sha256 in index.digests.items() if sha256_of(index.folder / f'{name}.npy') != sha256]
    if changed:
        report.problem(f'{index.folder}: sha256 differs: {", ".join(f"{name}.npy" for name in changed)}', MEND)
        return True
    if index.labels is None:
        report.fact(f'{index.folder}: no labels')
    elif not scope.unlabelled:
        least, most, found = int(index.labels.min()), int(index.labels.max()), len(np.unique(index.labels))
        report.fact(f'{index.folder}: labels {least}..{most}, {found} of them')
        bound = scope.num_classes or (len(index.classes) if index.classes is not None else None)
        if least < 0 or (bound is not None and most >= bound):
            bad = np.flatnonzero((index.labels < 0) | (index.labels >= (bound or most + 1)))
            at = index.place(int(bad[0]))
            report.problem(
                f'{index.shards[at.shard].name}: {at.name} has the label {int(index.labels[bad[0]])}, outside '
                f'0..{"" if bound is None else bound - 1} ({len(bad)} labels are)',
                'labels start at 0 and end at classes - 1',
            )
    return False


def _why_unfit(job: tuple[str, str, int]) -> str:
    """What is wrong with a shard, in words; '' if nothing is."""
    root, folder, number = Path(job[0]), job[1], job[2]
    index = ShardIndex(folder)
    shard = index.shards[number]
    path = root / shard.name
    try:
        if not path.is_file():
            return f'{shard.name}: is missing'
        if path.stat().st_size != shard.bytes:
            return f'{shard.name}: has {path.stat().st_size} bytes, the index says {shard.bytes}'
        if sha256_of(path) != shard.sha256:
            return f'{shard.name}: was changed: its sha256 is another'
        found = scan(path)
    except (ShardError, OSError) as error:
        return f'{shard.name}: {error}'
    end = int(index.ends[number])
    span = slice(end - shard.samples, end)
    begin = int(index.name_ends[span.start - 1]) if span.start else 0
    same = (
        len(found.offsets) == shard.samples
        and np.array_equal(found.offsets, index.offsets[span])
        and np.array_equal(found.sizes, index.sizes[span])
        and np.array_equal(found.names, index.names[begin : int(index.name_ends[end - 1])])
        and (index.labels is None or (found.labels < 0).all() or np.array_equal(found.labels, index.labels[span]))
    )
    return '' if same else f'{shard.name}: has other images, places or labels than the index says'
