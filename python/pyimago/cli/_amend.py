"""Change what IMAGE is: version, refcounts, size, key slots, the files that it names. Its content stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyimago
from pyimago.cli import _layout
from pyimago.cli._arguments import add_format, add_implicit, add_options, add_progress
from pyimago.cli._images import Images, add_cache, add_naming, bypasses_cache
from pyimago.cli._progress import show
from pyimago.cli._text import UsageError

if TYPE_CHECKING:
    import argparse

    from pyimago.cli._arguments import Parser

OPENS = "encrypt.key-secret"
"""Changes nothing: it opens the image."""


def add_arguments(parser: Parser) -> None:
    """What `amend` takes."""
    parser.add_argument("image", metavar="IMAGE", help="the image's file; nobody else may use it")
    add_format(parser)
    add_naming(parser)
    add_cache(parser, "-t", "--cache")
    add_options(parser)
    parser.add_argument(
        "--force", action="store_true", help="erase the last key slot, too: nobody ever reads the disk again"
    )
    add_progress(parser)
    add_implicit(parser)


def options(arguments: argparse.Namespace) -> None:
    """Print what `-o` takes."""
    _layout.print_amendable(arguments.format or _format(Images(arguments), arguments.image))


def run(arguments: argparse.Namespace) -> None:
    """Amend as the command line says."""
    images = Images(arguments)
    bypasses_cache(arguments.cache)
    for name in _layout.given(arguments.options, _layout.AMENDABLE):
        if name in _layout.FIXED - {OPENS}:
            raise UsageError(f"{name} is chosen when an image is created: convert the image to change it")
    changes = _layout.parse(arguments.options, images.secrets, _layout.AMENDABLE)
    if not changes:
        raise UsageError("Must specify options (-o)")
    # No size is none to change to: so qemu-img has it, and who means nothing by it keeps the disk.
    if changes.get("size") == 0:
        del changes["size"]
        if not changes:
            return
    with (
        images.parts(
            arguments.image, arguments.format, write=True, cache=arguments.cache, what="cache"
        ) as image,
        show(arguments) as progress,
    ):
        changes.setdefault("secret", image.secret)
        pyimago.amend(
            image.storage,
            format=image.format,
            opened_backing=image.backing,
            opened_data_file=image.data_file,
            implicit=arguments.implicit,
            force=arguments.force,
            progress=progress,
            **changes,
        )


def _format(images: Images, word: str | None) -> str:
    """That of the image whose options are asked for."""
    if word is None:
        raise UsageError("Expecting one image file name")
    with images.header(word) as (storage, kind):
        return kind or pyimago.info(storage).format
