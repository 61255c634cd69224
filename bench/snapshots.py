"""Deleting a snapshot, against `qemu-img snapshot -d`.

Every round has a new copy of the image, made and synced off the clock, as is a start of `qemu-img`; opening
and closing are on it for both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyimago

from .lab import Lab, run
from .measure import OURS, Cost, Sides, cost


def ours(path: Path, name: str) -> None:
    """Of the library."""
    with pyimago.open(path, write=True, format="qcow2") as image:
        image.snapshots.delete(name)


def qemu(path: Path, name: str) -> None:
    """The peer's."""
    run("qemu-img", "snapshot", "-q", "-d", name, str(path))


@contextmanager
def deleting(lab: Lab, count: int) -> Generator[Sides]:
    """The one in the middle of `count` snapshots."""
    source, copy, name = lab.snapshots(count), lab.folder / "copy.qcow2", f"snapshot-{count // 2}"

    def side(delete: Callable[[Path, str], None]) -> Cost:
        run("cp", "--reflink=auto", "--sparse=always", str(source), str(copy))
        run("sync", str(copy))
        spent = cost(1, lambda: delete(copy, name))
        copy.unlink()
        return spent

    def peer() -> Cost:
        start_up = cost(1, lambda: run("qemu-img", "--version"))
        return side(qemu) - start_up

    yield {OURS: partial(side, ours), "qemu-img": peer}
