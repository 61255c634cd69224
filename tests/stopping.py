"""The long operations, for what stops them in the middle; as a program, one that is killed there."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyimago
import pyimago.aio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from types import ModuleType

    Progress = Callable[[int, int], None]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SIZE = 16 * MIB
"""Of the disks that hold data."""


@dataclass(frozen=True)
class Work:
    """A long operation on files in the working directory, and what they are once it was stopped."""

    verb: str
    arguments: tuple[object, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    makes: tuple[str, ...] = ()
    """New files, which are not there unless they are whole."""
    keeps: tuple[str, ...] = ()
    """Images that are written to, and show a guest what they showed."""
    changes: str = ""
    """An image that is written to, and sound."""
    streams: str = ""
    """A file that is written first byte to last."""
    room: int = 0
    """Bytes by which files can get longer where the medium is to be full in the middle."""

    def now(self, progress: Progress | None = None) -> object:
        """Do it, synchronously."""
        with ExitStack() as stack:
            arguments = [stack.enter_context(a.now()) if isinstance(a, Opened) else a for a in self.arguments]
            return attrgetter(self.verb)(pyimago)(*arguments, progress=progress, **self.options)

    async def awaited(self, progress: Progress | None = None) -> object:
        """Do it, awaited."""
        async with AsyncExitStack() as stack:
            arguments = [
                await stack.enter_async_context(a.awaited()) if isinstance(a, Opened) else a
                for a in self.arguments
            ]
            return await attrgetter(self.verb)(pyimago.aio)(*arguments, progress=progress, **self.options)


class Opened:
    """An argument that is an image, open for writing while the operation lasts."""

    def __init__(self, name: str) -> None:
        self.name = name

    def now(self) -> AbstractContextManager[object]:
        return pyimago.open(self.name, write=True, format="qcow2")

    def awaited(self) -> AbstractAsyncContextManager[object]:
        return pyimago.aio.open(self.name, write=True, format="qcow2")


class Stream(Opened):
    """An argument that is a stream."""

    def now(self) -> AbstractContextManager[object]:
        return Path(self.name).open("wb", buffering=0)

    @asynccontextmanager
    async def awaited(self) -> AsyncIterator[object]:
        with self.now() as stream:
            yield stream


def slowly(act: Callable[[], None]) -> Progress:
    """Progress that does `act` once, in the middle; slow until then, as of fast calls some are left out."""
    acted = False

    def progress(done: int, total: int) -> None:
        nonlocal acted
        # Where others were faster it is the last one, before the operation ends.
        if done and not acted:
            acted = True
            act()
        elif done != total and not acted:
            time.sleep(0.06)

    return progress


QCOW2: Any = {"format": "qcow2"}
SECRET: Any = {"secret": b"sesame", "iterations": 1000}
WORKS = {
    "convert to raw": Work("convert", ("disk.qcow2", "out"), {"format": "raw"}, ("out",), room=SIZE // 2),
    "convert to qcow2": Work("convert", ("disk.qcow2", "out"), QCOW2, ("out",), room=SIZE // 2),
    "convert, compressed": Work(
        "convert", ("disk.qcow2", "out"), {**QCOW2, "compress": True}, ("out",), room=150 * KIB
    ),
    "convert to luks": Work(
        "convert", ("disk.qcow2", "out"), {"format": "luks", **SECRET}, ("out",), room=SIZE // 2
    ),
    "convert with a data file": Work(
        "convert", ("disk.qcow2", "out"), {**QCOW2, "data_file": "data"}, ("out", "data"), room=SIZE // 2
    ),
    "convert into an image": Work(
        "convert", ("disk.qcow2", Opened("odd.qcow2")), changes="odd.qcow2", room=SIZE // 4
    ),
    "convert to a stream": Work(
        "convert", ("disk.qcow2", Stream("streamed")), QCOW2, streams="streamed", room=SIZE // 2
    ),
    "dd": Work("dd", ("disk.qcow2", "out"), {"block_size": MIB, "skip": 1}, ("out",), room=SIZE // 2),
    "create raw, full": Work(
        "create", ("out", SIZE), {"format": "raw", "preallocation": "full"}, ("out",), room=SIZE // 2
    ),
    "create raw, falloc": Work(
        "create", ("out", 2 * GIB), {"format": "raw", "preallocation": "falloc"}, ("out",)
    ),
    "create qcow2, full": Work(
        "create", ("out", SIZE), {**QCOW2, "preallocation": "full"}, ("out",), room=SIZE // 2
    ),
    "create qcow2, metadata": Work(
        "create",
        ("out", SIZE),
        {**QCOW2, "preallocation": "metadata", "cluster_size": 512},
        ("out",),
    ),
    "create with a data file": Work(
        "create",
        ("out", SIZE),
        {**QCOW2, "preallocation": "full", "data_file": "data"},
        ("out", "data"),
        room=SIZE // 2,
    ),
    "create in place of another": Work(
        "create",
        ("out", SIZE),
        {**QCOW2, "preallocation": "full", "overwrite": True},
        ("out",),
        room=SIZE // 2,
    ),
    "resize, full": Work(
        "resize",
        ("odd.qcow2", 2 * SIZE),
        {"preallocation": "full"},
        keeps=("odd.qcow2",),
        room=SIZE // 2,
    ),
    "resize, metadata": Work(
        "resize", ("odd.qcow2", 16 * GIB), {"preallocation": "metadata"}, keeps=("odd.qcow2",), room=4 * GIB
    ),
    "shrink": Work("resize", ("small.qcow2", MIB), {"shrink": True}, changes="small.qcow2"),
    "commit": Work("commit", ("top.qcow2",), keeps=("top.qcow2",), changes="odd.qcow2", room=SIZE // 4),
    "rebase": Work(
        "rebase",
        ("top.qcow2", "disk.qcow2"),
        {"backing_format": "qcow2"},
        keeps=("top.qcow2",),
        room=SIZE // 4,
    ),
    "rebase to none, compressing": Work(
        "rebase",
        ("top.qcow2", None),
        {"compress": True},
        keeps=("top.qcow2",),
        room=40 * KIB,
    ),
    "amend refcounts": Work(
        "amend", ("small.qcow2",), {"refcount_bits": 64}, keeps=("small.qcow2",), room=128 * KIB
    ),
    "amend to version 2": Work(
        "amend", ("zeroes.qcow2",), {"version": 2}, keeps=("zeroes.qcow2",), room=SIZE // 2
    ),
    "check, repairing": Work(
        "check", ("broken.qcow2",), {"repair": "all"}, keeps=("broken.qcow2",), room=32 * KIB
    ),
    "check": Work("check", ("small.qcow2",)),
    "compare": Work("compare", ("disk.raw", "disk.qcow2"), {"first_format": "raw"}),
    "hash": Work("hash", ("disk.raw",), {"format": "raw"}),
    "map": Work("map", ("wide.qcow2",)),
    "measure": Work("measure", ("wide.qcow2",), QCOW2),
    "bench, writing": Work(
        "bench",
        ("odd.qcow2",),
        {"write": True, "pattern": 7, "count": 1 << 18},
        changes="odd.qcow2",
        room=SIZE // 4,
    ),
}


BRIEF = {
    "snapshot, create": ("snapshot.create", "now"),
    "snapshot, apply": ("snapshot.apply", "before"),
    "snapshot, delete": ("snapshot.delete", "before"),
    "bitmap, merge": ("bitmap.merge", "one", "two"),
}
"""What tells no progress: a verb and what it gets beside the image."""


def brief(name: str, api: ModuleType) -> Any:
    """Do it to `marked.qcow2`, on a slow medium."""
    verb, *arguments = BRIEF[name]
    file = pyimago.File.open_sync(pyimago.StorageOpenOptions(filename="marked.qcow2", write=True))
    return attrgetter(verb)(api)(pyimago.Throttled(file, latency=0.002), *arguments)


def once_written(act: Callable[[], object]) -> threading.Thread:
    """A thread that does `act` as soon as `marked.qcow2` is written to."""
    os.utime("marked.qcow2", ns=(0, 0))

    def watch() -> None:
        deadline = time.monotonic() + 60
        while Path("marked.qcow2").stat().st_mtime_ns == 0 and time.monotonic() < deadline:
            time.sleep(0.0002)
        act()

    watching = threading.Thread(target=watch)
    watching.start()
    return watching


def die() -> None:
    """In a child process: do the work that the command line names, and be killed in the middle."""
    if hasattr(os, "sched_setaffinity"):
        # By one thread: what it has not told of is not done.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    name = sys.argv[1]
    if name in BRIEF:
        once_written(kill)
        brief(name, pyimago)
        time.sleep(60)
    WORKS[name].now(slowly(kill))


def kill() -> None:
    """This process."""
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    die()
