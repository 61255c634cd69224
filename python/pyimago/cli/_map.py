"""Print where the content of IMAGE is: which ranges are data, zeroes or nowhere, and where in which file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pyimago
from pyimago.cli._arguments import add_format, add_implicit, add_output, add_progress, size
from pyimago.cli._images import Images, add_naming
from pyimago.cli._progress import along, show
from pyimago.cli._text import UsageError, escape
from pyimago.cli._text import size as human_size

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

    from pyimago.cli._arguments import Parser

PICTURES = (".png", ".svg")
LINES = 1000
"""That are written at once."""
WORD = {False: "false", True: "true"}


def add_arguments(parser: Parser) -> None:
    """What `map` takes."""
    parser.add_argument("image", metavar="IMAGE", help="the image, with the files it names")
    add_format(parser)
    add_naming(parser, share=True)
    add_output(parser)
    parser.add_argument(
        "--picture",
        metavar="FILE",
        nargs="?",
        const="",
        help="draw it, image by image of the chain: as FILE, a .png or .svg, or here",
    )
    parser.add_argument("-s", "--start-offset", metavar="OFFSET", type=size, default=0, help="where to begin")
    parser.add_argument("-l", "--max-length", metavar="LENGTH", type=size, help="how much to look at")
    add_progress(parser)
    add_implicit(parser)


def prepare(words: list[str]) -> list[str]:
    """The word behind `--picture` is its file only if it is called like one: it may be the image."""
    for at, word in enumerate(words):
        if word == "--picture" and not "".join(words[at + 1 : at + 2]).lower().endswith(PICTURES):
            return [*words[:at], "--picture=", *words[at + 1 :]]
    return words


def run(arguments: argparse.Namespace) -> None:
    """Print the map as the command line says."""
    if arguments.picture and not arguments.picture.lower().endswith(PICTURES):
        raise UsageError(f"{arguments.picture}: a picture is a file with the end {' or '.join(PICTURES)}")
    if arguments.picture is not None and arguments.output == "json":
        raise UsageError("--picture and --output=json exclude each other")
    with Images(arguments).opened(arguments.image, arguments.format) as image:
        start = arguments.start_offset
        length = max(image.size - start, 0)
        if arguments.max_length is not None:
            length = min(length, arguments.max_length)
        if arguments.picture is not None:
            _draw(image, arguments, min(start, image.size), length)
            return
        with show(arguments, result_on_stdout=True) as progress:
            extents = along(image.extents(min(start, image.size), length), progress, start, length)
            _write(_json(extents, start) if arguments.output == "json" else _human(extents), progress.hide)


def _draw(image: pyimago.SyncFormatAccess, arguments: argparse.Namespace, start: int, length: int) -> None:
    """To the file or the terminal."""
    from pyimago.cli import _picture
    from pyimago.cli._survey import survey

    with (
        Images(arguments).layers(arguments.image, arguments.format) as layers,
        show(arguments, result_on_stdout=True) as progress,
    ):
        if not length:
            raise UsageError(f"{arguments.image}: there is nothing to draw: the disk ends at {image.size}")
        if arguments.picture and any(_same_file(Path(arguments.picture), Path(name)) for name, _ in layers):
            raise UsageError(f"{arguments.picture}: this is the image, not a picture of it")
        columns = _picture.columns_for(len(layers)) if arguments.picture else _picture.terminal_columns()
        found = survey(image, layers, start=start, length=length, columns=columns, progress=progress)
    title = f"{escape(arguments.image)}: {image.format}, {human_size(image.size)}"
    if len(layers) > 1:
        title += f", a chain of {len(layers)} images"
    if arguments.picture == "":
        sys.stdout.write(_picture.text(found, title, sys.stdout))
        return
    drawing = _picture.draw(found, title)
    with Path(arguments.picture).open("wb") as file:
        svg = arguments.picture.lower().endswith(".svg")
        file.write(_picture.svg(drawing).encode() if svg else _picture.png(drawing))


def _same_file(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


def _write(lines: Iterator[str], before: Callable[[], None]) -> None:
    """Joins before it writes: a line at a time would cost more than finding out what is in it."""
    batch: list[str] = []

    def flush() -> None:
        before()
        sys.stdout.write("".join(batch))
        sys.stdout.flush()
        batch.clear()

    try:
        for line in lines:
            batch.append(line)
            if len(batch) == LINES:
                flush()
    finally:
        flush()


def _human(extents: Iterable[pyimago.Extent]) -> Iterator[str]:
    yield f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File\n"
    for extent in extents:
        if not extent.data or extent.zero:
            continue
        if extent.host_offset is None:
            raise UsageError("File contains external, encrypted or compressed clusters.")
        place = (extent.offset, extent.length, extent.host_offset)
        yield "".join(f"{_hexadecimal(number):<16}" for number in place) + f"{escape(extent.host_file)}\n"


def _hexadecimal(number: int) -> str:
    """As C's `%#x`."""
    return f"{number:#x}" if number else "0"


def _json(extents: Iterable[pyimago.Extent], start: int) -> Iterator[str]:
    """The text, too, is qemu-img's: some read it line by line."""
    before = "["
    for extent in extents:
        place = "" if extent.host_offset is None else f', "offset": {extent.host_offset}'
        yield (
            f'{before}{{ "start": {extent.offset}, "length": {extent.length}, "depth": {extent.depth}, '
            f'"present": {WORD[extent.allocated]}, "zero": {WORD[extent.zero]}, "data": {WORD[extent.data]}, '
            f'"compressed": {WORD[extent.compressed]}{place}}}'
        )
        before = ",\n"
    if before == "[":
        yield f'[{{ "start": {start}, "length": 0, "depth": 0, "present": false, "zero": false, '
        yield '"data": false, "compressed": false}'
    yield "]\n"
