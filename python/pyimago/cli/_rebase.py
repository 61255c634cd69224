"""Put another backing file below IMAGE; what a guest sees stays the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyimago
from pyimago.cli._arguments import add_format, add_implicit, add_progress
from pyimago.cli._images import NAMES_OF_FORMATS, Images, add_cache, add_naming, backing_name, bypasses_cache
from pyimago.cli._progress import show
from pyimago.cli._text import UsageError

if TYPE_CHECKING:
    import argparse

    from pyimago.cli._arguments import Parser
    from pyimago.cli._images import Below


def add_arguments(parser: Parser) -> None:
    """What `rebase` takes."""
    parser.add_argument("image", metavar="IMAGE", help="the image's file; nobody else may use it")
    add_format(parser)
    add_naming(parser, share=True)
    add_cache(parser, "-t", "--cache")
    add_cache(parser, "-T", "--backing-cache")
    parser.add_argument(
        "-b",
        "--backing",
        metavar="FILE",
        help="the new backing file, as seen from IMAGE; '': none",
    )
    parser.add_argument("-F", "--backing-format", metavar="FMT", help="its format; with '' there is none")
    parser.add_argument(
        "-c", "--compress", action="store_true", help="write what IMAGE gets in compressed clusters"
    )
    parser.add_argument(
        "-u", "--backing-unsafe", action="store_true", help="change the name only; no file is looked at"
    )
    add_progress(parser)
    add_implicit(parser)


def run(arguments: argparse.Namespace) -> None:
    """Rebase as the command line says."""
    if arguments.backing is None and not arguments.backing_unsafe:
        raise UsageError("Must specify backing file (-b) or use unsafe mode (-u)")
    direct = bypasses_cache(arguments.backing_cache, "source cache")
    lock = Images(arguments).lock
    backing = backing_name(arguments.backing or "", verbatim=arguments.backing_unsafe) or None
    if arguments.backing_format not in {None, *NAMES_OF_FORMATS}:
        raise UsageError(f"Invalid format name: {arguments.backing_format!r}")
    if backing and arguments.backing_format is None:
        raise UsageError(
            "the format of the new backing file has to be given (-F): a guest can write any header"
        )
    # With -U the locks of the backing files are not looked at; that of the image is.
    images = Images(arguments, share=False)
    below: Below = "none" if arguments.backing_unsafe else "given"
    with (
        images.parts(
            *(arguments.image, arguments.format),
            write=True,
            below=below,
            cache=arguments.cache,
            what="cache",
        ) as image,
        show(arguments) as progress,
    ):
        pyimago.rebase(
            image.storage,
            backing,
            backing_format=arguments.backing_format if backing else None,
            format=image.format,
            unsafe=arguments.backing_unsafe,
            compress=arguments.compress,
            secret=image.secret,
            opened_backing=image.backing,
            opened_data_file=image.data_file,
            direct=direct,
            lock=lock,
            implicit=arguments.implicit,
            progress=progress,
        )
