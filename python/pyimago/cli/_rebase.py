"""Put another backing file below IMAGE; what a guest sees stays the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyimago
from pyimago.cli._arguments import add_format, add_implicit, add_progress
from pyimago.cli._progress import show

if TYPE_CHECKING:
    import argparse

    from pyimago.cli._arguments import Parser


def add_arguments(parser: Parser) -> None:
    """What `rebase` takes."""
    parser.add_argument("image", metavar="IMAGE", help="the image's file; nobody else may use it")
    add_format(parser)
    parser.add_argument(
        "-b",
        "--backing",
        metavar="FILE",
        required=True,
        help="the new backing file, as seen from IMAGE; '': none",
    )
    parser.add_argument("-F", "--backing-format", metavar="FMT", help="its format (default: probed)")
    parser.add_argument(
        "-u", "--backing-unsafe", action="store_true", help="change the name only; no file is looked at"
    )
    add_progress(parser)
    add_implicit(parser)


def run(arguments: argparse.Namespace) -> None:
    """Rebase as the command line says."""
    with show(arguments) as progress:
        pyimago.rebase(
            arguments.image,
            arguments.backing or None,
            backing_format=arguments.backing_format,
            format=arguments.format,
            unsafe=arguments.backing_unsafe,
            implicit=arguments.implicit,
            progress=progress,
        )
