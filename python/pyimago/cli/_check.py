"""Check whether what IMAGE says of itself is true, and repair it if asked to.

Status 0: all is well, 1: something could not be checked, 2: corruption, 3: leaks only, 63: no format that can
be checked.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pyimago
from pyimago.cli._arguments import add_format, add_implicit, add_output, add_progress
from pyimago.cli._images import Images, add_cache, add_naming
from pyimago.cli._progress import show
from pyimago.cli._text import escape

if TYPE_CHECKING:
    import argparse

    from pyimago._types import Lock
    from pyimago.cli._arguments import Parser
    from pyimago.cli._images import Parts

NOT_CHECKED = 1
CORRUPT = 2
LEAKS = 3
UNSUPPORTED = 63


def add_arguments(parser: Parser) -> None:
    """What `check` takes."""
    parser.add_argument("image", metavar="IMAGE", help="the image's file")
    add_format(parser)
    add_naming(parser, share=True)
    add_cache(parser, "-T", "--cache")
    add_output(parser)
    parser.add_argument(
        "-r", "--repair", choices=("leaks", "all"), help="repair what leaks, or all that can be repaired"
    )
    parser.add_argument("--deep", action="store_true", help="unpack every compressed cluster, too")
    add_progress(parser)
    add_implicit(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check as the command line says."""
    images = Images(arguments)
    write = arguments.repair is not None
    with images.parts(arguments.image, arguments.format, write=write, cache=arguments.cache) as image:
        result = _check(arguments, image, images.lock)
    if arguments.output == "json":
        print(json.dumps(result.to_dict() | {"filename": arguments.image}, indent=4))
    elif not arguments.quiet:
        _print(result)
    if result.check_errors:
        return NOT_CHECKED
    if result.corruptions:
        return CORRUPT
    return LEAKS if result.leaks else 0


def _check(arguments: argparse.Namespace, image: Parts, lock: Lock) -> pyimago.CheckResult:
    try:
        with show(arguments) as progress:
            return pyimago.check(
                image.storage,
                format=image.format,
                data_file=image.data_file,
                repair=arguments.repair or "none",
                deep=arguments.deep,
                implicit=arguments.implicit,
                lock=lock,
                progress=progress,
            )
    except pyimago.UnsupportedFeatureError as error:
        error.exit_status = UNSUPPORTED  # type: ignore[attr-defined]
        raise


def _print(result: pyimago.CheckResult) -> None:
    for finding in result.findings:
        where = "" if finding.offset is None else f" (at offset {finding.offset:#x})"
        print(f"{finding.severity.upper()} {escape(finding.message)}{where}", file=sys.stderr)
    if result.corruptions_fixed or result.leaks_fixed:
        print("The following inconsistencies were found and repaired:\n")
        print(f"    {result.leaks_fixed} leaked clusters\n    {result.corruptions_fixed} corruptions\n")
        print("Double checking the fixed image now...")
    if result.clean:
        print("No errors were found on the image.")
    if result.corruptions:
        print(
            f"\n{result.corruptions} errors were found on the image.\n"
            "Data may be corrupted, or further writes to the image may corrupt it."
        )
    if result.leaks:
        print(
            f"\n{result.leaks} leaked clusters were found on the image.\n"
            "This means waste of disk space, but no harm to data."
        )
    if result.check_errors:
        print(f"\n{result.check_errors} internal errors have occurred during the check.")
    if result.total_clusters and result.allocated_clusters:
        allocated, total = result.allocated_clusters, result.total_clusters
        print(
            f"{allocated}/{total} = {100 * allocated / total:.2f}% allocated, "
            f"{100 * result.fragmented_clusters / allocated:.2f}% fragmented, "
            f"{100 * result.compressed_clusters / allocated:.2f}% compressed clusters"
        )
    if result.image_end_offset:
        print(f"Image end offset: {result.image_end_offset}")
