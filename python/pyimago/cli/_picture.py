"""`map --picture`: a survey of a disk as a PNG or SVG file, or in the terminal."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, TextIO

from pyimago.cli._survey import COMPRESSED, DATA, KINDS, UNALLOCATED, ZEROES
from pyimago.cli._text import size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pyimago.cli._survey import Row, Survey

COLOURS = {DATA: "#1f6fb5", COMPRESSED: "#e8930c", ZEROES: "#9fd3b4", UNALLOCATED: "#efefec"}
"""Told apart by the colour-blind, too, and by their darkness in print."""
PAPER, INK, FAINT = "#ffffff", "#222222", "#8a8a86"
STACK = (DATA, COMPRESSED, ZEROES)
"""From the bottom of a column to its top; the rest of it is unallocated."""

CHAR = 9, 15
"""Width and height of a character in pixels."""
MARGIN = 24
PLOT = 1000
"""Width of the rows."""
LABELS = 24
"""Characters that a row has for its name."""
TALL = 40
"""Height of a row where there is room; of many each is lower."""
COLUMNS = 1000
FEWER = 250
"""Columns where there are more than `MANY` rows, which bounds the work and the file."""
MANY = 40


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Filled."""

    x: int
    y: int
    width: int
    height: int
    colour: str


@dataclass(frozen=True, slots=True)
class Text:
    """With its left upper corner at (x, y)."""

    x: int
    y: int
    text: str
    colour: str = INK


@dataclass(frozen=True, slots=True)
class Drawing:
    """Shapes, later ones over earlier ones."""

    width: int
    height: int
    shapes: Sequence[Rectangle | Text]


def columns_for(images: int) -> int:
    """How many columns a file's picture of a chain of so many images has."""
    return COLUMNS if images < MANY else FEWER


def draw(survey: Survey, title: str) -> Drawing:
    """The picture of `survey`."""
    shapes: list[Rectangle | Text] = [Text(MARGIN, MARGIN, title)]
    left, top = MARGIN + LABELS * CHAR[0], MARGIN + 2 * CHAR[1]
    rows = survey.rows
    height, gap = (TALL, 14) if len(rows) <= 12 else (16, 4) if len(rows) <= MANY else (6, 1)
    y = top
    for number, row in enumerate(rows):
        # What a guest sees stands apart from what it is made of.
        tall, below = (TALL, 24) if number == 0 and len(rows) > 1 else (height, gap)
        shapes += _label(row, number, y, tall, below)
        shapes += _strip(row, left, y, tall)
        y += tall + below
    axis = y - gap + 4
    shapes.append(Rectangle(left, axis, PLOT, 1, FAINT))
    for x, text in _ticks(survey, PLOT, 8):
        shapes.append(Rectangle(left + min(x, PLOT - 1), axis, 1, 6, FAINT))
        shapes.append(Text(_centred(left + x, text), axis + 10, text, FAINT))
    legend = axis + 10 + 2 * CHAR[1]
    shapes += _legend(survey, left, legend)
    shapes.append(
        Text(
            left, legend + 2 * CHAR[1] - 6, _scale(survey, "the height of a colour is its share of it"), FAINT
        )
    )
    return Drawing(left + PLOT + 5 * CHAR[0] + MARGIN, legend + 3 * CHAR[1] + MARGIN - 6, shapes)


def _label(row: Row, number: int, y: int, height: int, gap: int) -> Iterator[Text]:
    """The row's name, and what it holds where there is room for that."""
    pitch = height + gap
    if pitch < CHAR[1]:
        every = -(-CHAR[1] // pitch)
        if (number - 1) % every == 0:
            yield Text(MARGIN, y + height // 2 - CHAR[1] // 2, _middle(row.name, LABELS - 2))
        return
    stored = _stored(row) if height >= 2 * CHAR[1] else ""
    yield Text(MARGIN, y + (height - CHAR[1] * (2 if stored else 1)) // 2, _middle(row.name, LABELS - 2))
    if stored:
        yield Text(MARGIN, y + height // 2, stored, FAINT)


def _stored(row: Row) -> str:
    return f"holds {'' if row.exact else 'about '}{size(row.totals[DATA] + row.totals[COMPRESSED])}"


def _strip(row: Row, left: int, y: int, height: int) -> Iterator[Rectangle]:
    """Equal neighbours as one rectangle. The height of a colour is its share, never too low to be seen."""
    count, least = len(row.columns), max(1, height // 8)
    stacks = [_stack(column, height, least) for column in row.columns]
    for kind in (UNALLOCATED, *STACK):
        x = left
        for span, run in groupby(stack[kind] for stack in stacks):
            begun, x = x, x + len(list(run))
            if span[0] < span[1]:
                first, last = (left + PLOT * (at - left) // count for at in (begun, x))
                yield Rectangle(first, y + height - span[1], last - first, span[1] - span[0], COLOURS[kind])


def _stack(column: Sequence[int], height: int, least: int) -> list[tuple[int, int]]:
    """Bottom and top of each of `KINDS` in a column, above its foot; unallocated is behind the others."""
    spans, whole, bottom = [(0, 0)] * len(KINDS), sum(column), 0
    if not whole:  # behind the end of this image's disk
        return spans
    heights = {kind: max(least, round(height * column[kind] / whole)) for kind in STACK if column[kind]}
    room = height - (1 if column[UNALLOCATED] else 0)
    while sum(heights.values()) > room:
        heights[max(heights, key=heights.__getitem__)] -= 1
    spans[UNALLOCATED] = (0, height)
    for kind, tall in heights.items():
        spans[kind] = (bottom, bottom + tall)
        bottom += tall
    return spans


def _ticks(survey: Survey, width: int, most: int) -> Iterator[tuple[int, str]]:
    """Where the axis has its marks, some `most` of them, and their sizes: multiples of a power of two."""
    step = 512
    while survey.length > most * step:
        step *= 2
    first = -(-survey.start // step) * step
    for offset in range(first, survey.start + survey.length + 1, step):
        yield (offset - survey.start) * width // survey.length, size(offset) if offset else "0"


def _legend(survey: Survey, x: int, y: int) -> Iterator[Rectangle | Text]:
    totals = survey.rows[0].totals
    for kind, name in enumerate(KINDS):
        text = f"{name} {size(totals[kind])}"
        yield Rectangle(x, y + 1, 13, 13, FAINT)
        yield Rectangle(x + 1, y + 2, 11, 11, COLOURS[kind])
        yield Text(x + 20, y, text)
        x += 20 + (len(text) + 3) * CHAR[0]


def _scale(survey: Survey, share: str) -> str:
    text = f"a column is {size(-(-survey.length // len(survey.rows[0].columns)))}; {share}"
    exact = all(row.exact for row in survey.rows)
    return text if exact else f"{text}; sampled: it is too much to look at all of it"


def _centred(x: int, text: str) -> int:
    return x - len(text) * CHAR[0] // 2


def _middle(text: str, limit: int) -> str:
    """`text` in at most `limit` characters: its end says more than its start."""
    return text if len(text) <= limit else f"...{text[len(text) - limit + 3 :]}"


def svg(drawing: Drawing) -> str:
    """The drawing as an SVG file."""
    from xml.sax.saxutils import escape

    extent = f'width="{drawing.width}" height="{drawing.height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {extent} shape-rendering="crispEdges">',
        f'<rect width="100%" height="100%" fill="{PAPER}"/>',
        f'<g font-family="monospace" font-size="{CHAR[1]}" xml:space="preserve">',
    ]
    for shape in drawing.shapes:
        match shape:
            case Rectangle(x, y, width, height, colour):
                lines.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{colour}"/>')
            case Text(x, y, text, colour):
                lines.append(
                    f'<text x="{x}" y="{y + 12}" fill="{colour}" textLength="{len(text) * CHAR[0]}">'
                    f"{escape(text)}</text>"
                )
    return "\n".join([*lines, "</g>", "</svg>", ""])


def png(drawing: Drawing) -> bytes:
    """The drawing as a PNG file."""
    from pyimago.cli._pixels import Canvas

    canvas = Canvas(drawing.width, drawing.height, [PAPER, INK, FAINT, *COLOURS.values()])
    for shape in drawing.shapes:
        match shape:
            case Rectangle(x, y, width, height, colour):
                canvas.rectangle(x, y, width, height, colour)
            case Text(x, y, text, colour):
                canvas.text(x, y, text, colour)
    return canvas.png()


PAINT = {DATA: "34", COMPRESSED: "33", ZEROES: "32", UNALLOCATED: "90"}
"""The terminal's own colours, which its owner can read."""
LETTERS = {DATA: "Dd", COMPRESSED: "Cc", ZEROES: "Zz", UNALLOCATED: ".."}
"""Where there are no colours: of a column that is half full at least, and of another."""
BLOCKS = " ▁▂▃▄▅▆▇█"
NARROW = 20
"""Characters that a row has for its name, in a terminal."""


def terminal_columns() -> int:
    """How many columns the picture in a terminal has, or what is written in its place."""
    return max(16, shutil.get_terminal_size().columns - NARROW - 2)


def text(survey: Survey, title: str, stream: TextIO) -> str:
    """The picture of `survey` in characters: in colour where `stream` is a terminal, but for NO_COLOR."""
    colours = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    cell = _coloured if colours and (stream.encoding or "").lower().startswith("utf") else _plain
    width = len(survey.rows[0].columns)
    lines = [title, ""]
    for number, row in enumerate(survey.rows):
        cells = (cell(column) if any(column) else (" ", "") for column in row.columns)
        drawn = "".join(
            _painted("".join(char for char, _ in run), paint)
            for paint, run in groupby(cells, key=lambda pair: pair[1])
        )
        lines.append(f"{_middle(row.name, NARROW):<{NARROW}}  {drawn}")
        if number == 0 and len(survey.rows) > 1:
            lines.append("")
    share = "the height of a block is its share" if cell is _coloured else "capitals: at least half"
    lines += [*_axis(survey, width), "", _key(survey, cell), _scale(survey, f"{share} of it")]
    return "\n".join(lines) + "\n"


def _main(column: Sequence[int]) -> tuple[int, int]:
    """What a character says of a column, and how many bytes that are: a little data counts for more."""
    stored = column[DATA] + column[COMPRESSED]
    if 4 * stored > column[ZEROES]:
        return (DATA if column[DATA] >= column[COMPRESSED] else COMPRESSED), stored
    return (ZEROES if column[ZEROES] else UNALLOCATED), column[ZEROES]


def _coloured(column: Sequence[int]) -> tuple[str, str]:
    """A block as high as what is stored, in the colour of most of it; zeroes shade."""
    kind, count = _main(column)
    block = {ZEROES: "░", UNALLOCATED: "·"}.get(kind) or BLOCKS[max(1, round(8 * count / sum(column)))]
    return block, PAINT[kind]


def _plain(column: Sequence[int]) -> tuple[str, str]:
    """A letter."""
    kind, count = _main(column)
    return LETTERS[kind][2 * count < sum(column)], ""


def _painted(characters: str, paint: str) -> str:
    return f"\x1b[{paint}m{characters}\x1b[0m" if paint else characters


def _axis(survey: Survey, width: int) -> Iterator[str]:
    """The marks, and below them as many of their sizes as have room."""
    marks, sizes = [" "] * width, ""
    for x, label in _ticks(survey, width, max(2, width // 14)):
        marks[min(x, width - 1)] = "|"
        at = min(x, width - len(label))
        if not sizes or at > len(sizes):
            sizes = f"{sizes:<{at}}{label}"
    yield " " * (NARROW + 2) + "".join(marks).rstrip()
    yield " " * (NARROW + 2) + sizes


def _key(survey: Survey, cell: Callable[[Sequence[int]], tuple[str, str]]) -> str:
    words: list[str] = []
    for kind, name in enumerate(KINDS):
        only = [1 if other == kind else 0 for other in range(len(KINDS))]
        words.append(f"{_painted(*cell(only))} {name} {size(survey.rows[0].totals[kind])}")
    return "   ".join(words)
