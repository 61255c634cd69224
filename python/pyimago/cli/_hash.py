"""Print a hash of what a guest sees of each IMAGE, equal for equal content whatever the format."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyimago
from pyimago.cli._arguments import add_format, add_implicit, add_progress
from pyimago.cli._images import Images, add_naming
from pyimago.cli._progress import show
from pyimago.cli._text import escape

if TYPE_CHECKING:
    import argparse

    from pyimago.cli._arguments import Parser


def add_arguments(parser: Parser) -> None:
    """What `hash` takes."""
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="an image, with the files it names")
    add_format(parser)
    add_naming(parser, share=True)
    add_progress(parser)
    add_implicit(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print the hash and the name of each, as sha256sum does."""
    images = Images(arguments)
    for word in arguments.images:
        with (
            images.opened(word, arguments.format) as image,
            show(arguments, result_on_stdout=True) as progress,
        ):
            digest = pyimago.hash(image, progress=progress)
        print(f"{digest}  {escape(word)}", flush=True)
