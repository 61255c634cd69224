"""Say whether two images have the same content for a guest. Status 0: yes, 1: no, 2 and above: an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyimago
from pyimago.cli._arguments import add_implicit, add_progress
from pyimago.cli._images import Images, add_cache, add_naming
from pyimago.cli._progress import show

if TYPE_CHECKING:
    import argparse

    from pyimago.cli._arguments import Parser

DIFFERENT = 1
FAILED = 2


def add_arguments(parser: Parser) -> None:
    """What `compare` takes."""
    parser.add_argument("first", metavar="IMAGE1", help="an image, with the files it names")
    parser.add_argument("second", metavar="IMAGE2", help="another")
    parser.add_argument("-f", "--a-format", metavar="FMT", help="format of IMAGE1 (default: probed)")
    parser.add_argument("-F", "--b-format", metavar="FMT", help="format of IMAGE2 (default: probed)")
    parser.add_argument("-s", "--strict", action="store_true", help="sizes and allocation count too")
    add_naming(parser, share=True)
    add_cache(parser, "-T", "--cache")
    add_progress(parser)
    add_implicit(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare as the command line says."""
    try:
        images, cache = Images(arguments), arguments.cache
        with (
            images.opened(arguments.first, arguments.a_format, cache=cache) as first,
            images.opened(arguments.second, arguments.b_format, cache=cache) as second,
            show(arguments) as progress,
        ):
            compared = pyimago.compare(first, second, strict=arguments.strict, progress=progress)
            if not arguments.quiet:
                progress.conclude(_lines(compared, strict=arguments.strict))
    except Exception as error:
        error.exit_status = FAILED  # type: ignore[attr-defined]
        raise
    return 0 if compared.identical else DIFFERENT


def _lines(compared: pyimago.Comparison, *, strict: bool) -> list[str]:
    warning = ["Warning: Image size mismatch!"] if compared.sizes_differ and not strict else []
    return [*warning, _verdict(compared)]


def _verdict(compared: pyimago.Comparison) -> str:
    match compared.difference:
        case "size":
            return "Strict mode: Image size mismatch!"
        case "status":
            return f"Strict mode: Offset {compared.offset} block status mismatch!"
        case "content":
            return f"Content mismatch at offset {compared.offset}!"
        case None:
            return "Images are identical."
