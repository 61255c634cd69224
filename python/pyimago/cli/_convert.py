"""Write the content of IN as the new image OUT.

It appears, or is replaced, once it is complete. Several IN are one behind the
other. OUT is `-` for standard output: raw, or a qcow2 in one pass.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import pyimago
from pyimago.cli import _layout
from pyimago.cli._arguments import (
    Options,
    add_implicit,
    add_options,
    add_progress,
    name,
    permuted,
    size,
)
from pyimago.cli._images import (
    Images,
    add_cache,
    add_naming,
    add_snapshot,
    backing_name,
    bypasses_cache,
    file_name,
    snapshot_named,
)
from pyimago.cli._progress import show
from pyimago.cli._text import UsageError, escape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyimago.cli._arguments import Parser

SPARSE_MAX = 16 << 20
STDOUT = "-"
VALUED = {
    *("-f", "-O", "-o", "-B", "-F", "-l", "-t", "-T", "-S", "-r", "-m", "--source-format", "--target-format"),
    *(
        "--options",
        "--target-options",
        "--backing",
        "--backing-format",
        "--source-snapshot",
        "--target-cache",
    ),
    *("--source-cache", "--sparse-size", "--rate", "--parallel", "--object"),
}


def add_arguments(parser: Parser) -> None:
    """What `convert` takes."""
    parser.add_argument("source", metavar="IN", nargs="+", help="what to read, with the files it names")
    parser.add_argument("target", metavar="OUT", help="the image to write; `-`: standard output")
    parser.add_argument("-f", "--source-format", metavar="FMT", help="format of IN (default: probed)")
    parser.add_argument("-O", "--target-format", metavar="FMT", help="format of OUT (raw)")
    parser.add_argument(
        "-c",
        "--compress",
        action="store_true",
        help="write compressed clusters, as -o compression_type= and compression_level= say",
    )
    parser.add_argument(
        "-B",
        "--backing",
        metavar="FILE",
        help="copy only what IN itself holds, over this backing file of OUT",
    )
    parser.add_argument("-F", "--backing-format", metavar="FMT", help="the backing file's format")
    parser.add_argument(
        "-n",
        "--no-create",
        action="store_true",
        help="write into OUT, which is there; ended early it is part new",
    )
    parser.add_argument(
        "--target-is-zero", action="store_true", help="with -n: OUT reads as zeroes, do not write them"
    )
    parser.add_argument(
        "-S",
        "--sparse-size",
        metavar="SIZE",
        type=size,
        help="zeroes in data that are left out (4k); 0: none, allocate all of OUT",
    )
    parser.add_argument(
        "-m", "--parallel", metavar="N", type=int, help="threads, 1 to 16 (one for each core)"
    )
    parser.add_argument("-r", "--rate", metavar="RATE", type=size, help="bytes to write in a second, at most")
    parser.add_argument("-W", "--oob-writes", action="store_true", help="write out of order: done anyhow")
    parser.add_argument(
        "-C",
        "--copy-range-offloading",
        dest="offload",
        action="store_true",
        help="leave copying to the system where both are plain files (copy_file_range); zeroes in data stay",
    )
    parser.add_argument("--bitmaps", action="store_true", help="copy persistent dirty bitmaps, too")
    parser.add_argument("--skip-broken-bitmaps", action="store_true", help="leave out inconsistent ones")
    parser.add_argument(
        "--salvage", action="store_true", help="what cannot be read becomes zeroes, and is told on stderr"
    )
    add_snapshot(parser, "-l", "--source-snapshot")
    add_naming(parser, share=True)
    parser.add_argument("--source-image-opts", dest="image_opts", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--target-image-opts",
        action="store_true",
        help="with -n: OUT is given as driver=...,file.filename=NAME",
    )
    add_cache(parser, "-T", "--source-cache")
    parser.add_argument(
        "-t",
        "--target-cache",
        metavar="MODE",
        default="writeback",
        help="unsafe: do not wait until OUT is on its medium (the default waits)",
    )
    add_options(parser)
    parser.add_argument(
        "--target-options", dest="options", action=Options, default=[], help=argparse.SUPPRESS
    )
    add_progress(parser)
    add_implicit(parser)


def prepare(words: Sequence[str]) -> list[str]:
    """Options may stand between the names."""
    return permuted(words, VALUED)


def options(arguments: argparse.Namespace) -> None:
    """Print what `-o` takes."""
    kind = arguments.target_format or "raw"
    _layout.print_created(kind, named=arguments.target is not None, known=_layout.CONVERTED)


def run(arguments: argparse.Namespace) -> None:
    """Convert as the command line says."""
    _check(arguments)
    bypasses_cache(arguments.target_cache)
    images = Images(arguments)
    layout = _layout_of(arguments, images)
    format: Any = "raw" if arguments.target_format is None else arguments.target_format
    durable = arguments.target_cache != "unsafe"
    stdout = arguments.target == STDOUT and not arguments.no_create
    with ExitStack() as stack:
        sources = [
            stack.enter_context(
                images.opened(
                    word,
                    arguments.source_format,
                    cache=arguments.source_cache,
                    snapshot=snapshot_named(arguments.source_snapshot),
                )
            )
            for word in arguments.source
        ]
        target: Any
        if stdout:
            if sys.stdout.isatty():
                raise UsageError("an image is not for a terminal: redirect standard output")
            target = sys.stdout.buffer
        elif arguments.no_create:
            target = stack.enter_context(
                Images(arguments, image_opts=arguments.target_image_opts, share=False).opened(
                    arguments.target,
                    None if arguments.target_image_opts else format,
                    write=True,
                    cache=arguments.target_cache,
                    what="cache",
                    durable=durable,
                )
            )
        else:
            target = file_name(arguments.target)
        progress = stack.enter_context(show(arguments, result_on_stdout=stdout))
        converted = pyimago.convert(
            sources,
            target,
            format=format,
            implicit=arguments.implicit,
            progress=progress,
            compress=arguments.compress,
            sparse=arguments.sparse_size,
            threads=arguments.parallel,
            rate=arguments.rate,
            salvage=arguments.salvage,
            bitmaps=_bitmaps(arguments),
            offload="copy" if arguments.offload else None,
            durable=durable,
            layer=arguments.no_create and arguments.backing is not None,
            target_is_zero=arguments.target_is_zero,
            **layout,
        )
    if not arguments.quiet:
        _warn(converted)


def _layout_of(arguments: argparse.Namespace, images: Images) -> dict[str, Any]:
    """What `-o`, `-B` and `-F` say; the level of compression among it."""
    layout = _layout.parse(arguments.options, images.secrets, _layout.CONVERTED)
    level = {key: layout.pop(key) for key in ("compression_level",) if key in layout}
    if "size" in layout:
        raise UsageError("the size of the target is that of what is converted: leave it out of -o")
    if arguments.no_create:
        if layout:
            raise UsageError("-o has no effect when skipping image creation")
        return level
    for key, value in (("backing", arguments.backing), ("backing_format", arguments.backing_format)):
        if value is not None:
            layout[key] = value
    if "backing" in layout:
        if layout.get("backing_format") is None:
            raise UsageError("Use of backing file requires explicit backing format")
        if arguments.target_format != "qcow2":
            raise UsageError(
                f"Backing file not supported for file format '{arguments.target_format or 'raw'}'"
            )
        layout["backing"] = backing_name(layout["backing"], verbatim=False)
    return layout | level


def _bitmaps(arguments: argparse.Namespace) -> Literal["none", "all", "sound"]:
    """Which ones are copied."""
    if not arguments.bitmaps:
        return "none"
    return "sound" if arguments.skip_broken_bitmaps else "all"


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what excludes each other, in qemu-img's words."""
    sparse, threads = arguments.sparse_size, arguments.parallel
    several = len(arguments.source) > 1
    problems = {
        "--target-is-zero requires use of -n flag": arguments.target_is_zero and not arguments.no_create,
        "--target-image-opts requires use of -n flag": arguments.target_image_opts
        and not arguments.no_create,
        "--target-image-opts and -O are mutually exclusive": arguments.target_image_opts
        and arguments.target_format is not None,
        "Use of --skip-broken-bitmaps requires --bitmaps": arguments.skip_broken_bitmaps
        and not arguments.bitmaps,
        "Copying bitmaps only possible with single source": arguments.bitmaps and several,
        "No support for concatenating multiple snapshot": arguments.source_snapshot is not None and several,
        "Having a backing file for the target makes no sense when concatenating multiple input images": (
            several and arguments.backing is not None
        ),
        "Cannot use --target-is-zero when the destination image has a backing file": arguments.target_is_zero
        and arguments.backing is not None,
        "Cannot enable copy offloading when -S is used": arguments.offload and sparse is not None,
        "Cannot enable copy offloading when -c is used": arguments.offload and arguments.compress,
        "Cannot use copy offloading in salvaging mode": arguments.offload and arguments.salvage,
        "Invalid number of coroutines specified. Must be between 1 and 16.": threads is not None
        and not 1 <= threads <= 16,
        "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to "
        f"{SPARSE_MAX}. Select 0 to disable sparse detection (fully allocates output).": sparse is not None
        and (sparse % 512 != 0 or sparse > SPARSE_MAX),
    }
    for problem, there in problems.items():
        if there:
            raise UsageError(problem)


def _warn(converted: pyimago.Converted) -> None:
    """Say what the copy lacks."""
    for offset, length in converted.unreadable:
        lost = f"error while reading offset {offset}: {length} bytes are zeroes in the target"
        print(f"{name()}: warning: {lost}", file=sys.stderr)
    for bitmap in converted.skipped_bitmaps:
        print(f"{name()}: warning: Skipping inconsistent bitmap '{escape(bitmap)}'", file=sys.stderr)
