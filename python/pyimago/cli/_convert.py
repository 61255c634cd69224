"""Write the guest's view of IN as the new image OUT, which appears, or is replaced, once it is complete."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyimago
from pyimago.cli import _layout
from pyimago.cli._arguments import add_implicit, add_options, add_progress
from pyimago.cli._images import Images, add_cache, add_naming, file_name
from pyimago.cli._progress import show

if TYPE_CHECKING:
    import argparse

    from pyimago.cli._arguments import Parser


def add_arguments(parser: Parser) -> None:
    """What `convert` takes."""
    parser.add_argument("source", metavar="IN", help="the image to read, with the files it names")
    parser.add_argument("target", metavar="OUT", help="the image to write, on its own")
    parser.add_argument("-f", "--source-format", metavar="FMT", help="format of IN (default: probed)")
    parser.add_argument("-O", "--target-format", metavar="FMT", default="raw", help="format of OUT (raw)")
    parser.add_argument(
        "-c", "--compress", action="store_true", help="write compressed clusters, as compression_type says"
    )
    add_naming(parser, share=True)
    add_cache(parser, "-T", "--source-cache")
    add_options(parser)
    add_progress(parser)
    add_implicit(parser)


def run(arguments: argparse.Namespace) -> None:
    """Convert as the command line says."""
    images = Images(arguments)
    layout = _layout.parse(arguments.options, images.secrets)
    with (
        images.opened(arguments.source, arguments.source_format, cache=arguments.source_cache) as source,
        show(arguments) as progress,
    ):
        pyimago.convert(
            source,
            file_name(arguments.target),
            format=arguments.target_format,
            progress=progress,
            compress=arguments.compress,
            **layout,
        )
