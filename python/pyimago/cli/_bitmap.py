"""Change the persistent dirty bitmap NAME in IMAGE; several changes are made in the order given."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pyimago
from pyimago.cli._arguments import Change, add_format, size
from pyimago.cli._images import Images, add_naming
from pyimago.cli._text import UsageError

if TYPE_CHECKING:
    import argparse

    from pyimago.cli._arguments import Parser


def add_arguments(parser: Parser) -> None:
    """What `bitmap` takes."""
    parser.set_defaults(changes=[])
    parser.add_argument("image", metavar="IMAGE", help="the image's file")
    parser.add_argument("name", metavar="NAME", help="the bitmap's name")
    add_format(parser)
    add_naming(parser)
    for name, text in (
        ("add", "make it; it follows writes, unless --disable comes too"),
        ("remove", "remove it"),
        ("clear", "make everything clean in it"),
        ("enable", "let it follow writes"),
        ("disable", "let it follow writes no more"),
    ):
        parser.add_argument(f"--{name}", action=Change, nargs=0, help=text)
    parser.add_argument("--merge", metavar="SOURCE", action=Change, help="mark in it what is dirty in SOURCE")
    parser.add_argument("-b", "--source-file", metavar="FILE", help="the image that SOURCE is in (IMAGE)")
    parser.add_argument("-F", "--source-format", metavar="FMT", help="its format (default: probed)")
    parser.add_argument(
        "-g", "--granularity", metavar="SIZE", type=size, help="of a bitmap that is made, in bytes"
    )


def run(arguments: argparse.Namespace) -> None:
    """Change as the command line says."""
    changes = arguments.changes
    if not changes:
        raise UsageError("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge")
    adds = any(change == "add" for change, _ in changes)
    if arguments.granularity is not None and not adds:
        raise UsageError("granularity only supported with --add")
    if arguments.source_file is not None and not any(change == "merge" for change, _ in changes):
        raise UsageError("Merge bitmap source file only supported with --merge")
    if arguments.source_format is not None and arguments.source_file is None:
        raise UsageError("-F only supported with -b")
    with ExitStack() as stack:
        # Before anything is changed: the source may not be there.
        source = None
        if arguments.source_file is not None:
            images = Images(arguments, image_opts=False)
            source = stack.enter_context(
                images.opened(arguments.source_file, arguments.source_format, below="given")
            )
        images = Images(arguments)
        image = stack.enter_context(
            images.opened(arguments.image, arguments.format, write=True, below="none")
        )
        for change, value in changes:
            _change(image.bitmaps, arguments, change, value, source)


def _change(
    bitmaps: pyimago.Bitmaps,
    arguments: argparse.Namespace,
    change: str,
    value: str,
    source: pyimago.SyncFormatAccess | None,
) -> None:
    name = arguments.name
    match change:
        case "add":
            bitmaps.add(name, granularity=arguments.granularity or None)
        case "remove":
            bitmaps.remove(name)
        case "clear":
            bitmaps.clear(name)
        case "enable":
            bitmaps.enable(name)
        case "disable":
            bitmaps.disable(name)
        case _:
            bitmaps.merge(name, value, image=source)
