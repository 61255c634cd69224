"""Create an image of SIZE bytes, or of the size of its backing file, at IMAGE; what is there is replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyimago
from pyimago.cli import _layout
from pyimago.cli._arguments import add_objects, add_options, add_progress, read_secrets, size
from pyimago.cli._images import backing_name, file_name
from pyimago.cli._progress import show
from pyimago.cli._text import UsageError, escape

if TYPE_CHECKING:
    import argparse

    from pyimago.cli._arguments import Parser

ENCRYPTION = (
    *("format", "key-secret", "cipher-alg", "cipher-mode", "ivgen-alg", "ivgen-hash-alg", "hash-alg"),
    "iter-time",
)
SHOWN = (
    *(_layout.LUKS + name for name in ENCRYPTION),
    *("cluster_size", "extended_l2", "preallocation", "compression_type", "size", "compat"),
    *("backing_file", "backing_fmt", "data_file", "data_file_raw", "lazy_refcounts", "refcount_bits"),
)
"""The order in which qemu-img shows options of qcow2; the other formats have their size first."""
DEFAULTS = {
    "cluster_size": "65536",
    "extended_l2": "off",
    "compression_type": "zlib",
    "lazy_refcounts": "off",
    "refcount_bits": "16",
}


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
    backing, backing_format = layout.get("backing"), layout.get("backing_format")
    if backing_format is not None and backing is None:
        raise UsageError(f"{arguments.image}: Backing format cannot be used without backing file")
    if backing:
        if backing_format is None:
            raise UsageError(f"{arguments.image}: Backing file specified without backing format (-F)")
        layout["backing"] = backing_name(backing, verbatim=arguments.backing_unsafe)
    asked = layout.pop("size", None)
    if asked is not None and arguments.size is not None:
        raise UsageError(f"{arguments.image}: The image size must be specified only once")
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
        print(_formatted(arguments, length, layout.get("cluster_size")))


def _formatted(arguments: argparse.Namespace, length: int, cluster_size: int | None) -> str:
    """The line that qemu-img prints: numbers of bytes in digits, all else as it was spelled."""
    kind = arguments.format
    values = (DEFAULTS if kind == "qcow2" else {}) | _layout.given(arguments.options)
    bytes_of = {"size": length, "cluster_size": cluster_size}
    spelled = {"backing_file": arguments.backing, "backing_fmt": arguments.backing_format}
    values |= {name: str(value) for name, value in (bytes_of | spelled).items() if value is not None}
    order = SHOWN if kind == "qcow2" else sorted(SHOWN, key=lambda name: name != "size")
    # As in `-o`: a comma within a value is two.
    words = [f"{name}={escape(values[name]).replace(',', ',,')}" for name in order if name in values]
    if kind == "luks":
        words = [word.removeprefix(_layout.LUKS) for word in words]
    return f"Formatting '{escape(arguments.image)}', fmt={kind} {' '.join(words)}"
