"""Random writes against `qemu-img bench -w`, an equal image for each side.

Both sides write 4 KiB at the same offsets in the same order (steps of 0.618 of the disk, which
`qemu-img bench` takes modulo its size); QEMU keeps 64 requests in flight. Neither waits for the
device (QEMU: cache mode `unsafe`): what a barrier costs is the kernel's and the same for both. Opening, a
start of `qemu-img`, and what is left to be written before the next round are off the clock; of ours that
includes the metadata, a hundredth of what was written.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pyimago

from .lab import CLUSTER, Lab, run, stride, stride_step
from .measure import OURS, Cost, Sides, cost
from .reads import BATCH, BLOCK, drive

Way: TypeAlias = Callable[[pyimago.FormatAccess, Sequence[int]], Awaitable[None]]

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


def tasks(count: int) -> Way:
    """Writes awaited in so many tasks, each taking the next offset: in the order of `qemu-img bench`."""

    async def written(image: pyimago.FormatAccess, offsets: Sequence[int]) -> None:
        left, data = iter(offsets), b"\xa5" * BLOCK

        async def task() -> None:
            write = image.write
            for offset in left:
                await write(data, offset)

        await asyncio.gather(*(task() for _ in range(count)))

    return written


async def many(image: pyimago.FormatAccess, offsets: Sequence[int]) -> None:
    """One `write_many` of a batch of writes."""
    data = b"\xa5" * BLOCK
    for at in range(0, len(offsets), BATCH):
        await image.write_many([(data, offset) for offset in offsets[at : at + BATCH]])


def qemu_bench(options: tuple[str, ...], path: Path, count: int, unit: int, size: int) -> None:
    """The same by `qemu-img bench`."""
    step = stride_step(size // unit) * unit
    shape = ("-w", "-d", str(BATCH), "-c", str(count), "-s", str(BLOCK), "-S", str(step), "--pattern", "165")
    run("qemu-img", "bench", "-f", "qcow2", *shape, *options, str(path))


def synced(path: Path) -> Path:
    """Nothing is left to be written."""
    os.sync()
    return path


def peers(lab: Lab, count: int, unit: int, image: Callable[[str], Path]) -> Sides:
    """`qemu-img bench` with each of its engines; `image` gives a side its image before each round."""
    size = lab.scale.size

    def peer(name: str, options: tuple[str, ...]) -> Cost:
        path = synced(image(name))
        start_up = cost(count, lambda: run("qemu-img", "--version"))
        return cost(count, lambda: qemu_bench(options, path, count, unit, size)) - start_up

    return {name: partial(peer, name, options) for name, options in engines(lab).items()}


def against_qemu(lab: Lab, count: int, unit: int, image: Callable[[str], Path]) -> Sides:
    """The synchronous class against those."""

    def ours() -> Cost:
        with pyimago.open(synced(image(OURS)), write=True) as written:
            return cost(count, lambda: write_loop(written, count, unit))

    return {OURS: ours, **peers(lab, count, unit, image)}


@contextmanager
def overwriting(lab: Lab, page: int) -> Generator[Sides]:
    """Into clusters that are there already, in images whose pages in the cache are of this size, in bytes.

    A file has its pages of the size that it was written in; the file system goes through all of one for each
    write to it.
    """
    source, copies = lab.full(), lab.folder / "copies"
    copies.mkdir()

    def image(name: str) -> Path:
        path = copies / f"{name}.qcow2"
        if not path.exists():
            with source.open("rb", buffering=0) as full, path.open("wb", buffering=0) as copy:
                while part := full.read(page):
                    copy.write(part)
        return path

    count = min(lab.scale.operations, lab.scale.size // BLOCK)
    yield against_qemu(lab, count, BLOCK, image)
    shutil.rmtree(copies)


@contextmanager
def overwriting_against_pwrite(lab: Lab) -> Generator[Sides]:
    """The same against nothing but the system call: what the file system costs both."""
    source, copies = lab.full(), [lab.folder / f"copy-{n}" for n in range(2)]
    for path in copies:
        shutil.copyfile(source, path)
    count = min(lab.scale.operations, lab.scale.size // BLOCK)

    def pwrite_loop() -> Cost:
        data, pwrite = b"\xa5" * BLOCK, os.pwrite
        with synced(copies[0]).open("r+b", buffering=0) as file:
            fd = file.fileno()
            return cost(
                count, lambda: [pwrite(fd, data, n * BLOCK) for n in stride(count, lab.scale.size // BLOCK)]
            )

    def ours() -> Cost:
        with pyimago.open(synced(copies[1]), write=True) as image:
            return cost(count, lambda: write_loop(image, count, BLOCK))

    yield {OURS: ours, "pwrite": pwrite_loop}
    for path in copies:
        path.unlink()


def allocations(lab: Lab) -> int:
    """How many there are in a round."""
    return min(lab.scale.operations, lab.scale.size // CLUSTER)


@contextmanager
def allocating(lab: Lab) -> Generator[Sides]:
    """Each into a cluster of its own, of an image that is empty before every round."""
    yield against_qemu(lab, allocations(lab), CLUSTER, lab.empty)


def awaited(lab: Lab, runner: asyncio.Runner, name: str, way: Way) -> Cost:
    """The same on the runner's loop, in some way."""
    path = synced(lab.empty(name))
    offsets = [n * CLUSTER for n in stride(allocations(lab), lab.scale.size // CLUSTER)]

    async def opened() -> pyimago.FormatAccess:
        return await pyimago.aio.open(path, write=True, format="qcow2")

    image = runner.run(opened())

    async def closed() -> None:
        await image.close()

    try:
        return drive(runner, len(offsets), lambda: way(image, offsets))
    finally:
        runner.run(closed())


@contextmanager
def in_flight(lab: Lab, way: Way) -> Generator[Sides]:
    """The same with many in flight, against one in flight."""
    with asyncio.Runner(loop_factory=lab.loop) as runner:
        yield {
            OURS: lambda: awaited(lab, runner, OURS, way),
            "one": lambda: awaited(lab, runner, "one", tasks(1)),
        }


@contextmanager
def in_flight_against_qemu(lab: Lab, way: Way) -> Generator[Sides]:
    """The same with many in flight on both sides."""
    with asyncio.Runner(loop_factory=lab.loop) as runner:
        yield {
            OURS: lambda: awaited(lab, runner, OURS, way),
            **peers(lab, allocations(lab), CLUSTER, lab.empty),
        }
