"""`pyimago convert`: the guest's view of one image, written as another."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

import pyimago
from pyimago.cli._text import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator, Sequence

SUFFIXES = {"": 0, "k": 10, "m": 20, "g": 30}
VERSIONS: dict[str, Literal[2, 3]] = {"0.10": 2, "1.1": 3, "v2": 2, "v3": 3}


class Layout(TypedDict, total=False):
    """How the target is laid out; what is absent is the library's choice."""

    cluster_size: int
    refcount_bits: int
    version: Literal[2, 3]


def run(arguments: argparse.Namespace) -> None:
    """Convert as the command line says."""
    layout = parse_layout(arguments.options)
    show = arguments.progress and not arguments.quiet
    with _complete_or_absent(arguments.target) as target:
        pyimago.convert(
            arguments.source,
            target,
            source_format=arguments.source_format,
            format=arguments.target_format,
            implicit=arguments.implicit,
            progress=_show if show else _ignore,
            **layout,
        )
    if show:
        print()


def parse_layout(options: Sequence[str]) -> Layout:
    """The layout that the `-o name=value,...` arguments ask for."""
    layout = Layout()
    for option in filter(None, ",".join(options).split(",")):
        name, _, value = option.partition("=")
        match name:
            case "cluster_size":
                layout["cluster_size"] = _parse_size(name, value)
            case "refcount_bits":
                layout["refcount_bits"] = _parse_size(name, value)
            case "compat":
                if value not in VERSIONS:
                    raise UsageError(f"compat is 0.10 (qcow2 version 2) or 1.1 (version 3), not {value!r}")
                layout["version"] = VERSIONS[value]
            case _:
                raise UsageError(f"no option {name!r}: cluster_size, compat and refcount_bits are known")
    return layout


def _parse_size(name: str, text: str) -> int:
    digits = text.rstrip("kKmMgG")
    suffix = text[len(digits) :].lower()
    if not (digits.isascii() and digits.isdigit()) or suffix not in SUFFIXES:
        raise UsageError(f"{name} is a number, with k, M or G if wanted, not {text!r}")
    return int(digits) << SUFFIXES[suffix]


@contextlib.contextmanager
def _complete_or_absent(target: str) -> Generator[Path]:
    """The path to write for `target`: a file beside it that takes its place when all went well.

    Whatever ends the conversion early, Ctrl-C too, leaves no half image, and leaves alone what stood at
    `target` before. A device or a pipe cannot be replaced and is written directly.
    """
    path = Path(target).resolve()
    try:
        before = path.stat()
    except FileNotFoundError:
        before = None
    if before is not None and not stat.S_ISREG(before.st_mode):
        yield path
        return
    part = path.with_name(f".pyimago-convert.{os.getpid()}.part")
    try:
        yield part
        if before is not None:
            part.chmod(stat.S_IMODE(before.st_mode))
        part.replace(path)
    except OSError as error:
        if error.filename == str(part):
            error.filename = target
        raise
    finally:
        part.unlink(missing_ok=True)


def _show(done: int, total: int) -> None:
    """`done` of `total` bytes; rewrites its line."""
    sys.stdout.write(f"    ({100 * done / total if total else 100:.2f}/100%)\r")
    sys.stdout.flush()


def _ignore(done: int, total: int) -> None:
    """Nothing to show; a callback all the same, for it is where Ctrl-C gets through."""
