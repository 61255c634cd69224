"""Make the disk of IMAGE as large as SIZE says: so many bytes, or +SIZE more, or -SIZE less."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyimago.cli._arguments import add_format, add_implicit, add_progress
from pyimago.cli._images import Images, add_naming
from pyimago.cli._progress import show
from pyimago.cli._text import UsageError, parse_size

if TYPE_CHECKING:
    import argparse

    from pyimago.cli._arguments import Parser


def add_arguments(parser: Parser) -> None:
    """What `resize` takes."""
    parser.add_argument("image", metavar="IMAGE", help="the image's file")
    parser.add_argument("size", metavar="[+-]SIZE", help="bytes, or with k, M, G, T, P, E")
    add_format(parser)
    add_naming(parser)
    parser.add_argument(
        "--shrink", action="store_true", help="allow a smaller size: what is behind it is lost"
    )
    parser.add_argument(
        "--preallocation",
        choices=("off", "metadata", "falloc", "full"),
        default="off",
        help="what is set aside for what is added (off)",
    )
    add_progress(parser)
    add_implicit(parser)


def prepare(words: list[str]) -> list[str]:
    """As with qemu-img, a word like `-10G` is a size and no option."""
    if "--" in words:
        return words
    sizes = [word for word in words if word[:1] == "-" and word[1:2].isdigit()]
    return [*(word for word in words if word not in sizes), *(["--", *sizes] if sizes else [])]


def run(arguments: argparse.Namespace) -> None:
    """Resize as the command line says."""
    text = arguments.size
    sign = text[:1] if text[:1] in {"+", "-"} else ""
    try:
        amount = parse_size(text.removeprefix(sign))
    except ValueError as error:
        raise UsageError(str(error)) from None
    with Images(arguments).opened(arguments.image, arguments.format, write=True) as image:
        size = {"": amount, "+": image.size + amount, "-": image.size - amount}[sign]
        if size <= 0:
            raise UsageError("New image size must be positive")
        if size < image.size and not arguments.shrink:
            raise UsageError("Use the --shrink option to perform a shrink operation.")
        with show(arguments) as progress:
            image.resize(size, preallocation=arguments.preallocation, progress=progress)
    if not arguments.quiet:
        print("Image resized.")
