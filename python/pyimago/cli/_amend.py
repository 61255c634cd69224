"""Change what IMAGE is: its version, its refcounts, the files that it names. Its content stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyimago
from pyimago.cli import _layout
from pyimago.cli._arguments import add_format, add_options, add_progress
from pyimago.cli._progress import show
from pyimago.cli._text import UsageError

if TYPE_CHECKING:
    import argparse

    from pyimago.cli._arguments import Parser


def add_arguments(parser: Parser) -> None:
    """What `amend` takes."""
    parser.add_argument("image", metavar="IMAGE", help="the image's file; nobody else may use it")
    add_format(parser)
    add_options(parser)
    add_progress(parser)


def run(arguments: argparse.Namespace) -> None:
    """Amend as the command line says."""
    changes = _layout.parse(arguments.options)
    if not changes:
        raise UsageError("Must specify options (-o)")
    size = changes.pop("size", None)
    if changes:
        with show(arguments) as progress:
            pyimago.amend(arguments.image, format=arguments.format, progress=progress, **changes)
    if size is not None:
        with pyimago.open(arguments.image, format=arguments.format, write=True) as image:
            image.resize(size)
