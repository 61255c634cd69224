"""Random writes against `qemu-img bench -w`, an equal image for each side.

Both sides write 4 KiB at the same offsets in the same order (steps of 0.618 of the disk, which
`qemu-img bench` takes modulo its size); QEMU keeps 64 requests in flight, its default. Neither waits for the
device (QEMU: cache mode `unsafe`): what a barrier costs is the kernel's and the same for both. Opening, a
start of `qemu-img`, and what is left to be written before the next round are off the clock; of ours that
includes the metadata, a hundredth of what was written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyimago

from .lab import CLUSTER, Lab, run, stride, stride_step
from .measure import OURS, Cost, Side, Sides, cost
from .reads import BLOCK

ENGINES = {
    "threads": ("-i", "threads", "-t", "unsafe"),
    "native": ("-i", "native", "-t", "none"),
    "io_uring": ("-i", "io_uring", "-t", "unsafe"),
}
"""QEMU's aio engines; `native` has no buffered mode and writes to the device."""


def engines(lab: Lab) -> dict[str, tuple[str, ...]]:
    """Those that this `qemu-img` and kernel have."""
    path = lab.empty("probe")

    def works(options: tuple[str, ...]) -> bool:
        try:
            run("qemu-img", "bench", "-f", "qcow2", "-w", "-c", "1", *options, str(path))
        except RuntimeError:
            return False
        return True

    return {name: options for name, options in ENGINES.items() if works(options)}


def write_loop(image: pyimago.SyncFormatAccess, count: int, unit: int) -> None:
    """The synchronous class, one write into each of `count` units."""
    data = b"\xa5" * BLOCK
    write = image.write
    for n in stride(count, image.size // unit):
        write(data, n * unit)


def qemu_bench(options: tuple[str, ...], path: Path, count: int, unit: int, size: int) -> None:
    """The same by `qemu-img bench`."""
    step = stride_step(size // unit) * unit
    shape = ("-w", "-c", str(count), "-s", str(BLOCK), "-S", str(step), "--pattern", "165")
    run("qemu-img", "bench", "-f", "qcow2", *shape, *options, str(path))


def against_qemu(lab: Lab, count: int, unit: int, image: Callable[[str], Path]) -> Sides:
    """The sides; `image` gives a side its image before each round, off the clock."""
    size = lab.scale.size

    def fresh(name: str) -> Path:
        path = image(name)
        os.sync()
        return path

    def ours() -> Cost:
        with pyimago.open(fresh(OURS), write=True) as written:
            return cost(count, lambda: write_loop(written, count, unit))

    def peer(name: str, options: tuple[str, ...]) -> Cost:
        path = fresh(name)
        start_up = cost(count, lambda: run("qemu-img", "--version"))
        return cost(count, lambda: qemu_bench(options, path, count, unit, size)) - start_up

    peers: dict[str, Side] = {name: partial(peer, name, options) for name, options in engines(lab).items()}
    return {OURS: ours, **peers}


@contextmanager
def overwriting(lab: Lab) -> Generator[Sides]:
    """Into clusters that are there already."""
    source, copies = lab.full(), lab.folder / "copies"
    copies.mkdir()

    def image(name: str) -> Path:
        path = copies / f"{name}.qcow2"
        if not path.exists():
            shutil.copyfile(source, path)
        return path

    count = min(lab.scale.operations, lab.scale.size // BLOCK)
    yield against_qemu(lab, count, BLOCK, image)
    shutil.rmtree(copies)


@contextmanager
def allocating(lab: Lab) -> Generator[Sides]:
    """Each into a cluster of its own, of an image that is empty before every round."""
    count = min(lab.scale.operations, lab.scale.size // CLUSTER)
    yield against_qemu(lab, count, CLUSTER, lab.empty)
