"""`pyimago convert`: the guest's view of one image, written as another."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypedDict

import pyimago
from pyimago.cli._text import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator, Sequence
    from typing import NoReturn

ENDING = (signal.SIGTERM, signal.SIGHUP)
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
    with _tidy_end():
        pyimago.convert(
            arguments.source,
            arguments.target,
            source_format=arguments.source_format,
            format=arguments.target_format,
            implicit=arguments.implicit,
            progress=_show if show else None,
            **layout,
        )
    if show:
        print()


@contextmanager
def _tidy_end() -> Generator[None]:
    """Has the signals that end a program end it as Ctrl-C does: what was written so far is removed first."""

    def end(number: int, _: object) -> NoReturn:
        sys.exit(128 + number)

    # One that is ignored (nohup) stays ignored.
    ours = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


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


def _show(done: int, total: int) -> None:
    """`done` of `total` bytes; rewrites its line."""
    print(f"    ({100 * done / total if total else 100:.2f}/100%)", end="\r", flush=True)
