"""Print how large a file a new image would need: one of SIZE, or one with the content of IMAGE."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyimago
from pyimago.cli import _layout
from pyimago.cli._arguments import add_format, add_implicit, add_options, add_output, add_progress, size
from pyimago.cli._progress import show

if TYPE_CHECKING:
    import argparse

    from pyimago.cli._arguments import Parser


def add_arguments(parser: Parser) -> None:
    """What `measure` takes."""
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="the image to convert")
    parser.add_argument("-s", "--size", metavar="SIZE", type=size, help="size of an empty disk")
    add_format(parser)
    parser.add_argument(
        "-O", "--target-format", metavar="FMT", default="raw", help="the new one's format (raw)"
    )
    add_options(parser)
    add_output(parser)
    add_progress(parser)
    add_implicit(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure as the command line says."""
    layout = _layout.parse(arguments.options)
    with show(arguments) as progress:
        measured = pyimago.measure(
            arguments.image,
            size=arguments.size,
            source_format=arguments.format,
            format=arguments.target_format,
            implicit=arguments.implicit,
            progress=progress,
            **layout,
        )
    if arguments.output == "json":
        print(json.dumps(measured.to_dict(), indent=4))
    elif not arguments.quiet:
        print(f"required size: {measured.required}")
        print(f"fully allocated size: {measured.fully_allocated}")
