"""What lies where on a disk, image by image of a chain, in as many columns as a picture has."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING

from pyimago.cli._progress import along
from pyimago.cli._text import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager

    from pyimago import Extent, SyncFormatAccess
    from pyimago._types import Progress

KINDS = ("data", "compressed", "zeroes", "unallocated")
DATA, COMPRESSED, ZEROES, UNALLOCATED = range(4)

EXTENTS = 1 << 20
"""That are looked at in all rows together: some seconds. What has more is sampled."""
SAMPLES = 8
"""Places in a column that are looked at then."""


@dataclass(frozen=True, slots=True)
class Row:
    """One image, or what the whole chain shows."""

    name: str
    columns: Sequence[Sequence[int]]
    """Bytes of each of `KINDS`, column by column."""
    exact: bool
    """Whether all of it was looked at."""

    @property
    def totals(self) -> list[int]:
        """Bytes of each of `KINDS`."""
        return [sum(column[kind] for column in self.columns) for kind in range(len(KINDS))]


@dataclass(frozen=True, slots=True)
class Survey:
    """A range of a disk."""

    start: int
    length: int
    rows: Sequence[Row]
    """Of a chain: first what a guest sees, then each image, topmost first."""


def survey(
    image: SyncFormatAccess,
    layers: Sequence[tuple[str, AbstractContextManager[SyncFormatAccess]]],
    *,
    start: int,
    length: int,
    columns: int,
    progress: Progress,
) -> Survey:
    """Looks at `length` bytes from `start` on of `image`, whose chain `layers` is, and of each of these."""
    edges = [start + length * i // columns for i in range(columns + 1)]
    if len(layers) == 1:
        return Survey(start, length, [_row(escape(layers[0][0]), image, edges, EXTENTS, progress)])
    found: list[Row] = []

    def so_far(done: int, _: int) -> None:
        progress(length * len(found) + done, length * (len(layers) + 1))

    found.append(_row("what a guest sees", image, edges, EXTENTS // 2, so_far))
    share = EXTENTS // 2 // len(layers)
    for name, layer in layers:
        with layer as opened:
            found.append(_row(escape(name), opened, edges, share, so_far))
    return Survey(start, length, found)


def _row(name: str, image: SyncFormatAccess, edges: Sequence[int], share: int, progress: Progress) -> Row:
    """At most some `share` extents of `image` are looked at."""
    size = max(0, min(edges[-1], image.size) - edges[0])
    columns = [[0] * len(KINDS) for _ in edges[1:]]
    extents = along(image.extents(edges[0], size) if size else (), progress, edges[0], size)
    seen = _add(extents, edges, columns, share)
    if seen >= size:
        return Row(name, columns, exact=True)
    sampled = [_sample(image, *span, share // len(columns)) for span in pairwise(edges)]
    return Row(name, sampled, exact=False)


def _add(extents: Iterable[Extent], edges: Sequence[int], columns: list[list[int]], limit: int) -> int:
    """Adds at most `limit` of them to the columns; the bytes that were."""
    seen = 0
    for extent in islice(extents, limit):
        offset, kind = extent.offset, _kind(extent)
        end = offset + extent.length
        seen += extent.length
        column = bisect_right(edges, offset) - 1
        while offset < end:
            edge = min(end, edges[column + 1])
            columns[column][kind] += edge - offset
            offset, column = edge, column + 1
    return seen


def _sample(image: SyncFormatAccess, start: int, end: int, share: int) -> list[int]:
    """The bytes of each of `KINDS` from `start` to `end`, as some places there suggest."""
    end = min(end, image.size)
    found = [0] * len(KINDS)
    for i in range(SAMPLES):
        first, last = (start + (end - start) * j // SAMPLES for j in (i, i + 1))
        if first < last:
            column = [[0] * len(KINDS)]
            seen = _add(image.extents(first, last - first), (first, last), column, max(1, share // SAMPLES))
            for kind, count in enumerate(column[0]):
                found[kind] += count * (last - first) // seen
    return found


def _kind(extent: Extent) -> int:
    if extent.compressed:
        return COMPRESSED
    if extent.data and not extent.zero:
        return DATA
    return ZEROES if extent.allocated else UNALLOCATED
