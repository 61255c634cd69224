"""Create an image of SIZE bytes, or of the size of its backing file, at IMAGE; what is there is replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyimago
from pyimago.cli import _layout
from pyimago.cli._arguments import add_objects, add_options, add_progress, read_secrets, size
from pyimago.cli._images import file_name
from pyimago.cli._progress import show
from pyimago.cli._text import UsageError, escape

if TYPE_CHECKING:
    import argparse

    from pyimago.cli._arguments import Parser

SHOWN = ("cluster_size", "extended_l2", "preallocation", "compression_type")
"""What qemu-img shows before the size of a qcow2 image."""
SHOWN_BEHIND = (
    "backing",
    "backing_format",
    "data_file",
    "data_file_raw",
    "version",
    "lazy_refcounts",
    "refcount_bits",
)
NAMES = {keyword: name for name, (keyword, _, _) in _layout.OPTIONS.items()}
DEFAULTS: dict[str, Any] = {
    "cluster_size": 65536,
    "extended_l2": False,
    "compression_type": "zlib",
    "lazy_refcounts": False,
    "refcount_bits": 16,
}
VERSIONS = {2: "0.10", 3: "1.1"}


def add_arguments(parser: Parser) -> None:
    """What `create` takes."""
    parser.add_argument("image", metavar="IMAGE", help="the file to create")
    parser.add_argument("size", metavar="SIZE", nargs="?", type=size, help="bytes, or with k, M, G, T, P, E")
    parser.add_argument("-f", "--format", metavar="FMT", default="raw", help="its format (raw)")
    parser.add_argument("-b", "--backing", metavar="FILE", help="the backing file, as seen from IMAGE")
    parser.add_argument("-F", "--backing-format", metavar="FMT", help="the backing file's format")
    parser.add_argument("-u", "--backing-unsafe", action="store_true", help="do not look at the backing file")
    add_options(parser)
    add_objects(parser)
    add_progress(parser)


def options(arguments: argparse.Namespace) -> None:
    """Print what `-o` takes."""
    _layout.print_created(arguments.format, named=arguments.image is not None)


def run(arguments: argparse.Namespace) -> None:
    """Create as the command line says."""
    image = file_name(arguments.image)
    layout = _layout.parse(arguments.options, read_secrets(arguments.object))
    for keyword, value in (("backing", arguments.backing), ("backing_format", arguments.backing_format)):
        if value is not None:
            layout[keyword] = value
    if layout.get("backing_format") is not None and layout.get("backing") is None:
        raise UsageError(f"{arguments.image}: Backing format cannot be used without backing file")
    asked = layout.pop("size", None)
    length = asked if arguments.size is None else arguments.size
    if length is None and "backing" not in layout:
        raise UsageError(f"{arguments.image}: Image creation needs a size parameter")
    with show(arguments) as progress:
        pyimago.create(
            image,
            length,
            format=arguments.format,
            overwrite=True,
            unsafe=arguments.backing_unsafe,
            progress=progress,
            **layout,
        )
    if not arguments.quiet:
        if length is None:
            length = pyimago.info(image, format=arguments.format).virtual_size
        print(_formatted(arguments.image, arguments.format, length, layout))


def _formatted(image: str, kind: str, length: int, layout: dict[str, Any]) -> str:
    """The line that qemu-img prints."""
    if kind == "qcow2":
        words = [_word(name, layout) for name in SHOWN if name in DEFAULTS | layout]
        words.append(f"size={length}")
        words += [_word(name, layout) for name in SHOWN_BEHIND if name in DEFAULTS | layout]
    else:
        words = [f"size={length}", *(_word(name, layout) for name in layout if name in SHOWN)]
    return f"Formatting '{escape(image)}', fmt={kind} {' '.join(words)}"


def _word(keyword: str, layout: dict[str, Any]) -> str:
    value: Any = layout.get(keyword, DEFAULTS.get(keyword))
    if isinstance(value, bool):
        value = "on" if value else "off"
    elif keyword == "version":
        value = VERSIONS[value]
    # As in `-o`: a comma within a value is two.
    return f"{NAMES[keyword]}={escape(value).replace(',', ',,')}"
