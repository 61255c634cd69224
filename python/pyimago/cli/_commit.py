"""Write what IMAGE holds into its backing file, and empty IMAGE; what a guest sees stays the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyimago
from pyimago.cli._arguments import add_format, add_implicit, add_progress, size
from pyimago.cli._images import Images, add_cache, add_naming
from pyimago.cli._progress import show

if TYPE_CHECKING:
    import argparse

    from pyimago.cli._arguments import Parser


def add_arguments(parser: Parser) -> None:
    """What `commit` takes."""
    parser.add_argument("image", metavar="IMAGE", help="the image's file")
    add_format(parser)
    add_naming(parser)
    add_cache(parser, "-t", "--cache")
    parser.add_argument(
        "-b",
        "--base",
        metavar="FILE",
        help="the image below to write to (the one right below); images between go into it, too, and IMAGE"
        " stays as it is",
    )
    parser.add_argument("-d", "--drop", action="store_true", help="leave IMAGE as it is: it is to be deleted")
    parser.add_argument(
        "-r", "--rate-limit", metavar="RATE", type=size, help="bytes to write in a second, at most"
    )
    add_progress(parser)
    add_implicit(parser)


def run(arguments: argparse.Namespace) -> None:
    """Commit as the command line says."""
    keep = arguments.drop or arguments.base is not None
    with (
        Images(arguments).opened(
            *(arguments.image, arguments.format),
            write=not keep,
            write_backing=True if arguments.base is None else arguments.base,
            cache=arguments.cache,
            what="cache",
        ) as image,
        show(arguments) as progress,
    ):
        pyimago.commit(image, keep=keep, rate_limit=arguments.rate_limit, progress=progress)
    if not arguments.quiet:
        print("Image committed.")
