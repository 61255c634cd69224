"""Reads of fully allocated and of compressed images; both sides of a comparison read the same offsets."""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Awaitable, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from typing import TypeAlias

import pyimago

from .lab import KIB, MIB, QEMU_SECRET, SECRET, Lab, run, settle
from .measure import OURS, Cost, Sides, cost

BLOCK = 4 * KIB
CHUNK = 2 * MIB
"""What `qemu-img convert` reads at a time."""
BATCH = 64
SLOW = 8
"""A peer some tens of times slower, and device reads, do one operation in so many."""

Read: TypeAlias = Callable[[mmap.mmap, int], Awaitable[object]]
Order: TypeAlias = Callable[[Lab, int], Sequence[int]]
Way: TypeAlias = Callable[[pyimago.FormatAccess, Sequence[int], int], Awaitable[None]]
Loop: TypeAlias = Callable[[pyimago.SyncFormatAccess, Sequence[int], int], None]


def buffer(length: int) -> mmap.mmap:
    """Memory aligned for direct I/O."""
    return mmap.mmap(-1, length)


@contextmanager
def descriptor(path: Path, flags: int = 0) -> Generator[int]:
    """The file, open for reading."""
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        yield fd
    finally:
        os.close(fd)


def preadv_loop(fd: int, offsets: Sequence[int], block: int) -> None:
    """The limit: nothing but the system call."""
    preadv, buffers = os.preadv, [buffer(block)]
    for offset in offsets:
        preadv(fd, buffers, offset)


def read_loop(image: pyimago.SyncFormatAccess, offsets: Sequence[int], block: int) -> None:
    """The synchronous class, block after block into one buffer."""
    read, buf = image.read, buffer(block)
    for offset in offsets:
        read(buf, offset)


async def in_tasks(reads: Sequence[Read], offsets: Sequence[int], block: int) -> None:
    """One task for each of `reads`, each awaiting its share of the offsets one by one."""

    async def task(read: Read, share: Sequence[int]) -> None:
        buf = buffer(block)
        for offset in share:
            await read(buf, offset)

    # Shares in one piece: picking every 16th offset would cost cache misses that are not the reads'.
    share = -(-len(offsets) // len(reads))
    await asyncio.gather(*(task(read, offsets[i * share :][:share]) for i, read in enumerate(reads)))


def tasks(count: int) -> Way:
    """Reads awaited in so many tasks; one task awaits them one by one."""
    return lambda image, offsets, block: in_tasks([image.read] * count, offsets, block)


async def gathered(image: pyimago.FormatAccess, offsets: Sequence[int], block: int) -> None:
    """`asyncio.gather` of a batch of reads."""
    buffers = [buffer(block) for _ in range(BATCH)]
    for at in range(0, len(offsets), BATCH):
        await asyncio.gather(*map(image.read, buffers, offsets[at : at + BATCH]))


async def many(image: pyimago.FormatAccess, offsets: Sequence[int], block: int) -> None:
    """One `read_many` of a batch of reads."""
    buffers = [buffer(block) for _ in range(BATCH)]
    for at in range(0, len(offsets), BATCH):
        await image.read_many(list(zip(buffers, offsets[at : at + BATCH], strict=False)))


def drive(runner: asyncio.Runner, operations: int, work: Callable[[], Awaitable[None]]) -> Cost:
    """The cost of a work that is awaited on the runner's loop."""

    async def main() -> None:
        await work()

    return cost(operations, lambda: runner.run(main()))


@contextmanager
def synchronous(lab: Lab, order: Order, block: int) -> Generator[Sides]:
    """`SyncFormatAccess.read` on the qcow2 against `os.preadv` on the raw file.

    Each round has its file in other memory: where that lies makes some hundredths of a small read.
    """
    offsets, full, raw = order(lab, block), lab.full(), lab.raw()
    with pyimago.open(full) as image, descriptor(raw) as fd:

        def hot(file: Path, loop: Callable[[], None]) -> Cost:
            settle(file)
            loop()
            return cost(len(offsets), loop)

        yield {
            OURS: lambda: hot(full, lambda: read_loop(image, offsets, block)),
            "preadv": lambda: hot(raw, lambda: preadv_loop(fd, offsets, block)),
        }


@contextmanager
def awaited(lab: Lab, order: Order, block: int, way: Way) -> Generator[Sides]:
    """`FormatAccess.read` on the qcow2, awaited in some way, against `os.preadv` on the raw file."""
    offsets = order(lab, block)
    with lab.awaited(lab.full()) as (runner, image), descriptor(lab.raw()) as fd:
        yield {
            OURS: lambda: drive(runner, len(offsets), lambda: way(image, offsets, block)),
            "preadv": lambda: cost(len(offsets), lambda: preadv_loop(fd, offsets, block)),
        }


def in_thread(fd: int) -> Read:
    """The standard library's way to await a file."""
    return lambda buf, offset: asyncio.to_thread(os.preadv, fd, [buf], offset)


@contextmanager
def against_to_thread(lab: Lab) -> Generator[Sides]:
    """Random 4 KiB in 16 tasks against `asyncio.to_thread(os.preadv)` in 16 tasks."""
    offsets = lab.random(BLOCK)
    few = offsets[::SLOW]
    with lab.awaited(lab.full()) as (runner, image), descriptor(lab.raw()) as fd:
        yield {
            OURS: lambda: drive(runner, len(offsets), lambda: tasks(16)(image, offsets, BLOCK)),
            "to_thread": lambda: drive(runner, len(few), lambda: in_tasks([in_thread(fd)] * 16, few, BLOCK)),
        }


@contextmanager
def against_aiofiles(lab: Lab) -> Generator[Sides]:
    """Random 4 KiB in 16 tasks against aiofiles in 16, each with a file of its own: it knows no `pread`."""
    import aiofiles

    offsets = lab.random(BLOCK)
    few = offsets[::SLOW]

    async def peer() -> None:
        async with AsyncExitStack() as stack:
            reads: list[Read] = []
            for _ in range(16):
                file = await stack.enter_async_context(aiofiles.open(lab.raw(), "rb", buffering=0))

                async def read(
                    buf: mmap.mmap, offset: int, file: aiofiles.threadpool.binary.AsyncFileIO = file
                ) -> None:
                    await file.seek(offset)
                    await file.readinto(buf)

                reads.append(read)
            await in_tasks(reads, few, BLOCK)

    with lab.awaited(lab.full()) as (runner, image):
        yield {
            OURS: lambda: drive(runner, len(offsets), lambda: tasks(16)(image, offsets, BLOCK)),
            "aiofiles": lambda: drive(runner, len(few), peer),
        }


@contextmanager
def direct(lab: Lab) -> Generator[Sides]:
    """Random 4 KiB past the page cache in 32 tasks, both sides from the qcow2's own file.

    The peer comes twice: with the loop's default executor, and with a thread for each task.
    """
    offsets = lab.random(BLOCK)[::SLOW]
    with ExitStack() as stack:
        runner, image = stack.enter_context(lab.awaited(lab.full(), direct=True))
        wide = stack.enter_context(asyncio.Runner(loop_factory=lab.loop))
        wide.get_loop().set_default_executor(ThreadPoolExecutor(32))
        fd = stack.enter_context(descriptor(lab.full(), os.O_DIRECT))
        reads = [in_thread(fd)] * 32
        yield {
            OURS: lambda: drive(runner, len(offsets), lambda: tasks(32)(image, offsets, BLOCK)),
            "default executor": lambda: drive(runner, len(offsets), lambda: in_tasks(reads, offsets, BLOCK)),
            "32 threads": lambda: drive(wide, len(offsets), lambda: in_tasks(reads, offsets, BLOCK)),
        }


@contextmanager
def deep(lab: Lab, links: int) -> Generator[Sides]:
    """Random 4 KiB from the top of a chain, against the same of a chain of one."""
    offsets = lab.random(BLOCK)
    with pyimago.open(lab.chain(links)) as image, pyimago.open(lab.chain(1)) as one:
        yield {
            OURS: lambda: cost(len(offsets), lambda: read_loop(image, offsets, BLOCK)),
            "one image": lambda: cost(len(offsets), lambda: read_loop(one, offsets, BLOCK)),
        }


@contextmanager
def deep_awaited(lab: Lab, links: int) -> Generator[Sides]:
    """The same, awaited one by one."""
    offsets = lab.random(BLOCK)
    with ExitStack() as stack:

        async def opened(path: Path) -> pyimago.FormatAccess:
            return await pyimago.aio.open(path)

        runner = stack.enter_context(asyncio.Runner(loop_factory=lab.loop))
        image, one = (runner.run(opened(lab.chain(count))) for count in (links, 1))

        def side(image: pyimago.FormatAccess) -> Cost:
            return drive(runner, len(offsets), lambda: tasks(1)(image, offsets, BLOCK))

        async def closed() -> None:
            await image.close()
            await one.close()

        stack.callback(lambda: runner.run(closed()))
        yield {OURS: lambda: side(image), "one image": lambda: side(one)}


@contextmanager
def opening(lab: Lab, links: int) -> Generator[Sides]:
    """Opening and closing a chain, against `qemu-img info` of all its images."""
    path = lab.chain(links)

    def ours() -> None:
        pyimago.open(path, format="qcow2").close()

    info = ("qemu-img", "info", "--backing-chain", "-f", "qcow2", str(path))
    yield {OURS: lambda: cost(1, ours), "info": lambda: cost(1, lambda: run(*info))}


@contextmanager
def mapping(lab: Lab, links: int) -> Generator[Sides]:
    """All extents of a chain, opened for it, against `qemu-img map`."""
    path = lab.chain(links)

    def ours() -> None:
        with pyimago.open(path, format="qcow2") as image:
            for _ in image.extents():
                pass

    command = ("qemu-img", "map", "-f", "qcow2", "--output=json", str(path))
    yield {OURS: lambda: cost(1, ours), "map": lambda: cost(1, lambda: run(*command))}


def batch_loop(image: pyimago.SyncFormatAccess, offsets: Sequence[int], block: int) -> None:
    """The same with `read_many`, batch after batch into the same buffers."""
    buffers = [buffer(block) for _ in range(BATCH)]
    for at in range(0, len(offsets), BATCH):
        image.read_many(list(zip(buffers, offsets[at : at + BATCH], strict=False)))


def by_two(loop: Callable[[Sequence[int]], None], offsets: Sequence[int]) -> None:
    """Two threads, half of the offsets each."""
    threads = [Thread(target=loop, args=(offsets[i::2],)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


PASSES = 8
"""Times that two threads go over large blocks: the system needs a while to give each a processor."""


@contextmanager
def two_threads(lab: Lab, block: int, loop: Loop) -> Generator[Sides]:
    """Random blocks of one image by two threads, half each, against all by one."""
    offsets = list(lab.random(block)) * (PASSES if block > BLOCK else 1)
    with pyimago.open(lab.full()) as image:

        def alone(offsets: Sequence[int]) -> None:
            loop(image, offsets, block)

        yield {
            OURS: lambda: cost(len(offsets), lambda: by_two(alone, offsets)),
            "one thread": lambda: cost(len(offsets), lambda: alone(offsets)),
        }


@contextmanager
def two_threads_against_preadv(lab: Lab, block: int) -> Generator[Sides]:
    """Random blocks by two threads, against the same by nothing but the system call, as fast as memory is."""
    offsets = list(lab.random(block)) * PASSES
    with pyimago.open(lab.full()) as image, descriptor(lab.raw()) as fd:
        yield {
            OURS: lambda: cost(
                len(offsets), lambda: by_two(lambda share: read_loop(image, share, block), offsets)
            ),
            "preadv": lambda: cost(
                len(offsets), lambda: by_two(lambda share: preadv_loop(fd, share, block), offsets)
            ),
        }


@contextmanager
def compressed(lab: Lab, kind: str) -> Generator[Sides]:
    """A compressed image, opened, read to the end and closed, against `qemu-img convert` of it to null."""
    path = lab.compressed(kind)
    yield converted(lab, lambda: pyimago.open(path), f"driver=qcow2,file.filename={path}")


@contextmanager
def encrypted(lab: Lab) -> Generator[Sides]:
    """An encrypted image, opened, read to the end and closed, against `qemu-img convert` of it to null."""
    path = lab.encrypted()
    source = f"driver=qcow2,encrypt.key-secret=s,file.filename={path}"
    yield converted(lab, lambda: pyimago.open(path, secret=SECRET), source, *QEMU_SECRET)


def converted(lab: Lab, opened: Callable[[], pyimago.SyncFormatAccess], source: str, *objects: str) -> Sides:
    """A whole image read chunk by chunk, and converted to null.

    The peer comes three times: plain, with no search for zeroes, and with more requests in any order.
    """
    size = lab.scale.size

    def ours() -> None:
        with opened() as image:
            read_loop(image, range(0, size, CHUNK), CHUNK)

    def convert(*options: str) -> Cost:
        target = f"driver=null-co,size={size}"
        command = (
            "qemu-img",
            "convert",
            "-n",
            *objects,
            "--image-opts",
            *options,
            source,
            "--target-image-opts",
            target,
        )
        return cost(size // CHUNK, lambda: run(*command))

    return {
        OURS: lambda: cost(size // CHUNK, ours),
        "convert": convert,
        "convert -S 0": lambda: convert("-S", "0"),
        "convert -S 0 -W -m 16": lambda: convert("-S", "0", "-W", "-m", "16"),
    }
