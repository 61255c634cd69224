"""Print how large a file a new image would need: one of SIZE, or one with the content of IMAGE."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pyimago
from pyimago.cli import _layout
from pyimago.cli._arguments import add_format, add_implicit, add_options, add_output, add_progress, size
from pyimago.cli._images import Images, add_naming, add_snapshot, snapshot_named
from pyimago.cli._progress import show
from pyimago.cli._text import UsageError

if TYPE_CHECKING:
    import argparse

    from pyimago.cli._arguments import Parser


def add_arguments(parser: Parser) -> None:
    """What `measure` takes."""
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="the image to convert")
    parser.add_argument("-s", "--size", metavar="SIZE", type=size, help="size of an empty disk")
    add_format(parser)
    add_naming(parser, share=True)
    add_snapshot(parser)
    parser.add_argument(
        "-O", "--target-format", metavar="FMT", default="raw", help="the new one's format (raw)"
    )
    add_options(parser)
    add_output(parser)
    add_progress(parser)
    add_implicit(parser)


def options(arguments: argparse.Namespace) -> None:
    """Print what `-o` takes."""
    _layout.print_created(arguments.target_format, named=False)


def run(arguments: argparse.Namespace) -> None:
    """Measure as the command line says."""
    images = Images(arguments)
    layout = _layout.parse(arguments.options, images.secrets)
    with ExitStack() as stack:
        source = None
        if arguments.image is not None:
            if arguments.size is not None:
                raise UsageError("--size N cannot be used together with a filename.")
            source = stack.enter_context(
                images.opened(arguments.image, arguments.format, snapshot=snapshot_named(arguments.snapshot))
            )
        elif arguments.image_opts or arguments.format or arguments.snapshot:
            raise UsageError("--image-opts, -f, and -l require a filename argument.")
        elif arguments.size is None:
            raise UsageError("Either --size N or one filename must be specified.")
        measured = pyimago.measure(
            source,
            size=arguments.size,
            format=arguments.target_format,
            progress=stack.enter_context(show(arguments)),
            **layout,
        )
    if arguments.output == "json":
        print(json.dumps(measured.to_dict(), indent=4))
    elif not arguments.quiet:
        print(f"required size: {measured.required}")
        print(f"fully allocated size: {measured.fully_allocated}")
        if measured.bitmaps is not None:
            print(f"bitmaps size: {measured.bitmaps}")
