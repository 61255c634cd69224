"""Ctrl-C, and cancelling a task, end what an image's maker, or its user, lets run long."""

from __future__ import annotations

import asyncio
import random
import signal
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import MakeImage, pattern

import pyimago
import pyimago.aio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECRET = b"Sesam"
TABLES = 1 << 21


class Stop(Exception):  # noqa: N818 - it is no error
    """What a signal's handler raises, as that of SIGINT raises KeyboardInterrupt."""


@contextmanager
def stopped() -> Iterator[None]:
    """Raises `Stop` in the main thread a moment after it began, in the middle of what it does then."""

    def stop(*_: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(Stop) as raised:
            yield
        # What comes to its own end here fails, and would have done so first.
        assert raised.value.__context__ is None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A LUKS image whose header wants as much work for a secret as is done for an image."""
    path = tmp_path / "slow.luks"
    pyimago.create(path, 1 << 20, format="luks", secret=SECRET, iterations=1000)
    with path.open("r+b") as file:
        file.seek(208 + 4)
        file.write(struct.pack(">I", 130_000_000))
    return path


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A qcow2 image whose L1 table names one empty L2 table again and again, and nothing at last."""
    path = tmp_path / "wide.qcow2"
    cluster = 2 << 20
    pyimago.create(path, TABLES * (cluster // 8) * cluster, format="qcow2", cluster_size=cluster)
    with path.open("r+b") as file:
        (l1,) = struct.unpack(">Q", file.read(48)[40:])
        end = file.seek(0, 2)
        file.truncate(end + cluster)
        file.seek(l1)
        file.write(struct.pack(">Q", end) * (TABLES - 1) + struct.pack(">Q", end + 512))
    return path


def opened(path: Path) -> None:
    with pyimago.open(path, secret=b"wrong", write=True):
        pass


def test_a_signal_ends_the_opening_of_a_slow_header(slow: Path) -> None:
    with stopped():
        opened(slow)
    with stopped():
        pyimago.luks.add_key(slow, secret=b"wrong", new_secret=b"new", iterations=1000)
    with stopped():
        pyimago.amend(slow, secret=b"wrong", keyslot_state="active", new_secret=b"new", iterations=1000)
    with stopped():
        pyimago.create(slow.with_name("new"), 1 << 20, format="luks", secret=b"x", iterations=100_000_000)
    assert not slow.with_name("new").exists()


def test_a_signal_ends_the_filling_of_a_new_image(tmp_path: Path) -> None:
    for format in ("raw", "qcow2"):
        path = tmp_path / format
        with stopped():
            pyimago.create(path, 16 << 30, format=format, preallocation="full")
        assert not path.exists()


def walks(path: Path) -> list[Callable[[], Any]]:
    def extents() -> list[pyimago.Extent]:
        with pyimago.open(path, format="qcow2") as image:
            return list(image.extents())

    return [
        extents,
        lambda: pyimago.hash(path, format="qcow2"),
        lambda: pyimago.measure(path, source_format="qcow2", format="qcow2", cluster_size=2 << 20),
        lambda: pyimago.compare(path, path, first_format="qcow2", second_format="qcow2"),
        lambda: pyimago.convert(
            path, path.with_name("flat"), source_format="qcow2", format="qcow2", cluster_size=2 << 20
        ),
    ]


@pytest.mark.parametrize("number", range(5))
def test_a_signal_ends_the_walk_through_a_hostile_mapping(wide: Path, number: int) -> None:
    with stopped():
        walks(wide)[number]()
    assert not wide.with_name("flat").exists()


def packable(path: Path) -> bytes:
    """What takes far longer to pack than until it is stopped, and an image for it."""
    # Much like text: seconds of work for some cores.
    words = [str(i * i % 99991) for i in range(4096)]
    data = " ".join(random.Random(1).choices(words, k=1 << 18)).encode()[: 1 << 20] * 256
    pyimago.create(path, len(data), format="qcow2")
    return data


def begins_with(path: Path, data: bytes) -> bool:
    """Whether the image is sound and has some of `data` from its start on, and nothing else."""
    assert pyimago.check(path, format="qcow2").clean
    with pyimago.open(path, format="qcow2") as image:
        there = [extent for extent in image.extents() if extent.allocated]
        return all(
            image.pread(extent.length, extent.offset) == data[extent.offset : extent.offset + extent.length]
            for extent in there
        ) and sum(extent.length for extent in there) < len(data)


def test_a_signal_ends_compressed_writing_and_the_image_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "image"
    data = packable(path)
    with pyimago.open(path, format="qcow2", write=True) as image:
        with stopped():
            image.write_compressed(data, 0, level=9)
        image.write(data[:4096], 0)
    assert begins_with(path, data)


async def test_a_cancelled_task_ends_compressed_writing(tmp_path: Path) -> None:
    path = tmp_path / "image"
    data = packable(path)
    async with pyimago.aio.open(path, format="qcow2", write=True) as image:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await image.write_compressed(data, 0, level=9)
        await image.write(data[:4096], 0)
    assert begins_with(path, data)


async def free(path: Path) -> None:
    """Waits until nobody has the image any more."""
    while True:
        try:
            with pyimago.open(path, format="raw", write=True):
                return
        except pyimago.ImageLockedError:
            await asyncio.sleep(0.01)


async def test_a_cancelled_task_ends_the_opening_of_a_slow_header(slow: Path) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await pyimago.aio.open(slow, secret=b"wrong", write=True)
    await free(slow)
    adding = asyncio.create_task(
        pyimago.aio.luks.add_key(slow, secret=b"wrong", new_secret=b"new", iterations=1000)
    )
    await asyncio.sleep(0.2)
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    await free(slow)


async def test_a_cancelled_task_ends_the_filling_of_a_new_image(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await pyimago.aio.create(path, 16 << 30, format="raw", preallocation="full")
    with suppress(FileNotFoundError):
        while path.stat().st_blocks * 512 < 16 << 30:
            await asyncio.sleep(0.01)
    assert not path.exists()


async def test_a_cancelled_verb_ends_with_the_image_closed(make_image: MakeImage) -> None:
    """Whether it was opened, used or closed right then: nothing is left open, which would be warned of."""
    path = make_image(pattern(1, 1 << 20))
    file = pyimago.File.open_sync(pyimago.StorageOpenOptions(filename=path, write=True, lock="off"))
    slow = pyimago.Throttled(file, latency=0.005)
    made = 0
    for moment in range(10):
        task = asyncio.create_task(pyimago.aio.snapshot.create(slow, f"s{moment}"))
        await asyncio.sleep(0.02 * moment)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
            made += 1
    names = {snapshot.name for snapshot in pyimago.snapshot.list(path)}
    assert made <= len(names) <= 10
    assert pyimago.check(path).clean
    with pyimago.open(path, write=True) as image:
        assert image.pread(1 << 20, 0) == pattern(1, 1 << 20)
