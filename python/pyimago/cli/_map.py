"""Print where the content of IMAGE is: which ranges are data, zeroes or nowhere, and where in which file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pyimago
from pyimago.cli._arguments import add_format, add_implicit, add_output, size
from pyimago.cli._text import UsageError, escape

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from pyimago.cli._arguments import Parser

LINES = 1000
"""That are written at once."""
WORD = {False: "false", True: "true"}


def add_arguments(parser: Parser) -> None:
    """What `map` takes."""
    parser.add_argument("image", metavar="IMAGE", help="the image, with the files it names")
    add_format(parser)
    add_output(parser)
    parser.add_argument("-s", "--start-offset", metavar="OFFSET", type=size, default=0, help="where to begin")
    parser.add_argument("-l", "--max-length", metavar="LENGTH", type=size, help="how much to look at")
    add_implicit(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print the map as the command line says."""
    with pyimago.open(arguments.image, format=arguments.format, implicit=arguments.implicit) as image:
        start = min(arguments.start_offset, image.size)
        length = image.size - start
        if arguments.max_length is not None:
            length = min(length, arguments.max_length)
        extents = image.extents(start, length)
        _write(_json(extents) if arguments.output == "json" else _human(extents))


def _write(lines: Iterator[str]) -> None:
    """Joins before it writes: a line at a time would cost more than finding out what is in it."""
    batch: list[str] = []
    try:
        for line in lines:
            batch.append(line)
            if len(batch) == LINES:
                sys.stdout.write("".join(batch))
                batch.clear()
    finally:
        sys.stdout.write("".join(batch))


def _human(extents: Iterable[pyimago.Extent]) -> Iterator[str]:
    yield f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File\n"
    for extent in extents:
        if not extent.data:
            continue
        if extent.host_offset is None:
            raise UsageError("File contains external, encrypted or compressed clusters.")
        place = (extent.offset, extent.length, extent.host_offset)
        yield "".join(f"{_hexadecimal(number):<16}" for number in place) + f"{escape(extent.host_file)}\n"


def _hexadecimal(number: int) -> str:
    """As C's `%#x`."""
    return f"{number:#x}" if number else "0"


def _json(extents: Iterable[pyimago.Extent]) -> Iterator[str]:
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
    yield "]\n" if before != "[" else "[]\n"
