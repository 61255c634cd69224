"""Write blocks of an image as a new image."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pyimago
from pyimago.cli._arguments import add_format, add_implicit, add_progress, name, permuted
from pyimago.cli._images import Images, add_naming, file_name
from pyimago.cli._progress import show
from pyimago.cli._text import UsageError, escape, parse_size

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pyimago.cli._arguments import Parser

OPERANDS = ("if", "of", "bs", "count", "skip")
BLOCK_MAX = 2**31 - 1
VALUED = {"-f", "-O", "--format", "--output-format", "--object"}


def add_arguments(parser: Parser) -> None:
    """What `dd` takes."""
    parser.add_argument(
        "operand",
        metavar="NAME=VALUE",
        nargs="+",
        help="if=IN, of=OUT, bs=SIZE of a block (512), skip=BLOCKS, count=BLOCKS: the skipped ones count",
    )
    add_format(parser)
    parser.add_argument("-O", "--output-format", metavar="FMT", default="raw", help="format of OUT (raw)")
    add_naming(parser, share=True)
    add_progress(parser)
    add_implicit(parser)


def prepare(words: Sequence[str]) -> list[str]:
    """Options may stand between the operands."""
    return permuted(words, VALUED)


def run(arguments: argparse.Namespace) -> None:
    """Copy as the command line says."""
    operands: dict[str, str] = {}
    for word in arguments.operand:
        key, _, value = word.partition("=")
        if key not in OPERANDS:
            raise UsageError(f"unrecognized operand {key}")
        operands[key] = value
    block_size = _number("bs", operands.get("bs", "512"))
    if not 1 <= block_size <= BLOCK_MAX:
        raise UsageError(f"Invalid bs specified. Must be between 1 and {BLOCK_MAX}.")
    count = _number("count", operands["count"]) if "count" in operands else None
    skip = _number("skip", operands.get("skip", "0"))
    if not operands.get("if") or not operands.get("of"):
        raise UsageError("Must specify both input and output files")
    with (
        Images(arguments).opened(operands["if"], arguments.format) as source,
        show(arguments) as progress,
    ):
        # As qemu-img has it, count counts from the disk's start, and skip is of that.
        end = source.size if count is None else min(source.size, count * block_size)
        if skip * block_size > end:
            # That is told, and the new image is empty.
            print(f"{name()}: {escape(operands['if'])}: cannot skip to specified offset", file=sys.stderr)
        pyimago.dd(
            source,
            file_name(operands["of"]),
            block_size=block_size,
            count=None if count is None else max(0, count - skip),
            skip=skip,
            format=arguments.output_format,
            progress=progress,
        )


def _number(operand: str, text: str) -> int:
    """The value of an operand: a size for `bs`, else blocks."""
    try:
        return parse_size(text) if operand == "bs" else parse_size(text if text.isdecimal() else "x" + text)
    except ValueError:
        raise UsageError(f"Invalid {operand} specified: '{text}'.") from None
