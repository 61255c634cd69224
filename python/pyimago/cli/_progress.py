"""How far a long command is, in qemu-img's form."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator

    from pyimago._types import Progress


@contextmanager
def show(arguments: argparse.Namespace) -> Generator[Progress | None]:
    """What a long operation is to call, if `-p` asks for it; the line is ended where the operation has."""
    if not arguments.progress or arguments.quiet:
        yield None
        return
    yield _show
    print()


def _show(done: int, total: int) -> None:
    """`done` of `total` bytes; rewrites its line."""
    print(f"    ({100 * done / total if total else 100:.2f}/100%)", end="\r", flush=True)
