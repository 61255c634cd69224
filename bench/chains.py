"""Content that moves between an image and those below it, and tables only looked at, against qemu-img.

A start of `qemu-img` is off its clock; opening and closing are on it for both sides.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyimago

from .lab import CLUSTER, GIB, Lab, run, settle
from .measure import OURS, Cost, Sides, cost

COPIED = 1 << 63
"""Of an entry: nobody else refers to what it names."""

MODES = ("writeback", "none")
"""Cache modes of the peer that make durable what they wrote, as ours does."""


def qemu(*arguments: str) -> Cost:
    """What a command of the peer costs, without its start."""
    start_up = cost(1, lambda: run("qemu-img", "--version"))
    return cost(1, lambda: run("qemu-img", *arguments)) - start_up


def over(lab: Lab, name: str, backing: Path) -> Path:
    """A new image over another."""
    path = lab.folder / name
    options = ("-f", "qcow2", "-b", backing.name, "-F", "qcow2")
    run("qemu-img", "create", "-q", *options, str(path))
    return path


def changed(lab: Lab, name: str, backing: Path) -> Path:
    """An image that holds all clusters of the full one below it, other ones."""
    path = lab.folder / name
    if not path.exists():
        over(lab, path.name, backing)
        with (
            pyimago.open(path, write=True, format="qcow2", backing=None) as image,
            lab.raw().open("rb") as file,
        ):
            file.seek(CLUSTER)
            for offset in range(0, lab.scale.size, 16 * CLUSTER):
                image.write(file.read(16 * CLUSTER).ljust(16 * CLUSTER, b"x"), offset)
        settle(path)
    return path


@contextmanager
def committing(lab: Lab) -> Generator[Sides]:
    """Into an image that has a place for everything; the image is kept, so that every round has it.

    Before each the page cache holds both files as they are read from the device: direct writes empty it.
    """
    base = lab.folder / "base.qcow2"
    shutil.copyfile(lab.full(), base)
    path = changed(lab, "to-commit.qcow2", base)

    def side(commit: Callable[[], Cost]) -> Cost:
        settle(base)
        settle(path)
        return commit()

    def peer(mode: str) -> Cost:
        return qemu("commit", "-q", "-d", "-f", "qcow2", "-t", mode, str(path))

    def ours() -> Cost:
        return cost(1, lambda: pyimago.commit(path, format="qcow2", keep=True))

    yield {OURS: partial(side, ours), **{mode: partial(side, partial(peer, mode)) for mode in MODES}}
    base.unlink()
    path.unlink()


@contextmanager
def rebasing(lab: Lab) -> Generator[Sides]:
    """From that image to the one below it: the new image on top gets everything."""
    middle = changed(lab, "changed.qcow2", lab.full())
    bottom = lab.full().name

    def side(rebase: Callable[[Path], Cost]) -> Cost:
        path = over(lab, "rebased.qcow2", middle)
        run("sync", str(path))
        settle(middle)
        settle(lab.full())
        spent = rebase(path)
        path.unlink()
        return spent

    def ours(path: Path) -> Cost:
        return cost(1, lambda: pyimago.rebase(path, bottom, backing_format="qcow2", format="qcow2"))

    def peer(mode: str, path: Path) -> Cost:
        caches = ("-t", mode, "-T", mode)
        return qemu("rebase", "-q", *caches, "-f", "qcow2", "-b", bottom, "-F", "qcow2", str(path))

    yield {OURS: partial(side, ours), **{mode: partial(side, partial(peer, mode)) for mode in MODES}}


def scattered(lab: Lab) -> Path:
    """A disk of 64 TiB with a hundred thousand clusters all over it (fewer for a quick run).

    Its tables are put into the file by hand: written as a guest would have them written they are 6 GiB.
    """
    path = lab.folder / "scattered.qcow2"
    if not path.exists():
        size, count = 64 << 40, 100_000 if lab.scale.size >= GIB else 1000
        pyimago.create(path, size, format="qcow2")
        tables: dict[int, int] = {}
        with path.open("r+b", buffering=0) as file:
            (l1,) = struct.unpack(">Q", os.pread(file.fileno(), 8, 40))
            end = -(-path.stat().st_size // CLUSTER) * CLUSTER
            for n in range(count):
                index, entry = divmod(n * (size // count) // CLUSTER, CLUSTER // 8)
                if index not in tables:
                    tables[index] = end
                    os.pwrite(file.fileno(), struct.pack(">Q", end | COPIED), l1 + 8 * index)
                    end += CLUSTER
                os.pwrite(file.fileno(), struct.pack(">Q", end | COPIED), tables[index] + 8 * entry)
                os.pwrite(file.fileno(), b"data", end)
                end += CLUSTER
            file.truncate(end)
        if not pyimago.check(path, format="qcow2", repair="all").clean:
            raise RuntimeError(f"{path} is not clean")
    return path


@contextmanager
def looking(
    lab: Lab, verb: str, arguments: Sequence[str], ours: Callable[[Path], object]
) -> Generator[Sides]:
    """Metadata only."""
    path = scattered(lab)
    yield {OURS: lambda: cost(1, lambda: ours(path)), verb: lambda: qemu(verb, *arguments, str(path))}


def mapped(path: Path) -> object:
    """What `map --output=json` knows."""
    return [extent.to_dict() for extent in pyimago.map(path, format="qcow2")]


def measured(path: Path) -> object:
    """How large a qcow2 it would be."""
    return pyimago.measure(path, source_format="qcow2", format="qcow2")


def told(path: Path) -> object:
    """What `info --output=json` knows."""
    return pyimago.info(path, format="qcow2").to_dict()
