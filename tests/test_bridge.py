"""Operations of an event loop: cancellation, closing, threads, forks, and the interpreter's end."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import pyimago
import pyimago.aio

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20
CONTENT = b"".join(at.to_bytes(8, "little") for at in range(SIZE // 8))
LATENCY = 0.1


def memory() -> pyimago.Memory:
    return pyimago.Memory(CONTENT)


async def slow(latency: float = LATENCY, *, write: bool = False) -> pyimago.FormatAccess:
    """An image whose every request takes `latency` seconds."""
    storage = pyimago.Throttled(memory(), latency=latency)
    return pyimago.FormatAccess(await pyimago.Raw.open_image(storage, write=write))


def is_locked(buf: bytearray) -> bool:
    """Whether somebody holds the buffer's memory."""
    try:
        buf.append(0)
    except BufferError:
        return True
    buf.pop()
    return False


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_slow_operation_does_not_block_the_loop() -> None:
    image = await slow()
    reading = asyncio.ensure_future(image.read(bytearray(10), 0))
    ticks = 0
    while not reading.done():
        await asyncio.sleep(0.001)
        ticks += 1
    assert ticks > 5


async def test_cancelling_leaves_the_buffer_to_the_operation_until_it_ends() -> None:
    image = await slow()
    buf = bytearray(8)
    references = sys.getrefcount(buf)
    reading = asyncio.ensure_future(image.read(buf, 8))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert is_locked(buf)
    await until(lambda: not is_locked(buf))
    assert buf == CONTENT[8:16]
    del reading
    gc.collect()
    assert sys.getrefcount(buf) == references


async def test_a_timeout_ends_the_waiting() -> None:
    image = await slow(1.0)
    start = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await image.read(bytearray(8), 0)
    assert asyncio.get_running_loop().time() - start < 0.5


async def test_closing_waits_for_operations_in_flight() -> None:
    image = await slow(write=True)
    buf = bytearray(8)
    reading = asyncio.ensure_future(image.read(buf, 0))
    writing = asyncio.ensure_future(image.write(b"written", 100))
    await image.close()
    assert image.closed
    await asyncio.gather(reading, writing)
    assert buf == CONTENT[:8]
    with pytest.raises(ValueError, match="closed"):
        await image.read(buf, 0)


async def test_gather_of_many_operations() -> None:
    image = pyimago.FormatAccess(await pyimago.Raw.open_image(memory()))
    bufs = [bytearray(16) for _ in range(10_000)]
    await asyncio.gather(*(image.read(buf, at * 16) for at, buf in enumerate(bufs)))
    assert b"".join(bufs) == CONTENT[: 16 * 10_000]
    assert not any(map(is_locked, bufs))


async def test_reading_on_and_on_lets_others_run() -> None:
    image = pyimago.FormatAccess(await pyimago.Raw.open_image(memory()))
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.ensure_future(tick())
    buf = bytearray(4096)
    for _ in range(5000):
        await image.read(buf, 0)
    ticking.cancel()
    assert ticks > 3


async def test_tasks_that_read_on_and_on_get_equal_shares() -> None:
    image = pyimago.FormatAccess(await pyimago.Raw.open_image(memory()))
    counts = [0] * 20

    async def read(number: int) -> None:
        buf = bytearray(4096)
        while max(counts) < 5000:
            await image.read(buf, 0)
            counts[number] += 1

    await asyncio.gather(*map(read, range(len(counts))))
    assert min(counts) > max(counts) / 2


async def test_a_task_can_be_cancelled_while_it_lets_others_run() -> None:
    image = pyimago.FormatAccess(await pyimago.Raw.open_image(memory()))
    buf = bytearray(4096)

    async def read() -> None:
        while True:
            await image.read(buf, 0)

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_loop_in_a_task_that_reads_loses_no_other_task(end: type[BaseException]) -> None:
    done: list[int] = []

    async def main() -> list[asyncio.Task[None]]:
        image = pyimago.FormatAccess(await pyimago.Raw.open_image(memory()))

        async def read(number: int) -> None:
            buf = bytearray(4096)
            for turn in range(5000):
                await image.read(buf, 0)
                if (number, turn) == (3, 2000):
                    raise end
            done.append(number)

        return [asyncio.ensure_future(read(number)) for number in range(8)]

    loop = asyncio.new_event_loop()
    tasks = loop.run_until_complete(main())
    with pytest.raises(end):
        loop.run_until_complete(tasks[0])
    loop.run_until_complete(asyncio.wait(tasks))
    assert sorted(done) == [0, 1, 2, 4, 5, 6, 7]
    assert isinstance(tasks[3].exception(), end)
    loop.close()


async def test_a_hundred_images_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.qcow2" for number in range(100)]
    for number, path in enumerate(paths):
        await pyimago.aio.create(path, SIZE, format="qcow2", cluster_size=512 << number % 5)

    async def use(number: int, path: Path) -> bytes:
        async with pyimago.aio.open(path, write=True) as image:
            await image.write(number.to_bytes(4, "big") * 1000, number * 777)
            await image.flush()
            return await image.pread(4000, number * 777)

    found = await asyncio.gather(*(use(number, path) for number, path in enumerate(paths)))
    assert found == [number.to_bytes(4, "big") * 1000 for number in range(100)]


async def test_completed_futures_are_futures_to_asyncio() -> None:
    image = pyimago.FormatAccess(await pyimago.Raw.open_image(memory()))
    future = image.pread(8, 0)
    assert asyncio.isfuture(future)
    assert await future == await future == CONTENT[:8]
    assert await asyncio.wait_for(image.pread(8, 8), 1) == CONTENT[8:16]
    assert await asyncio.shield(image.pread(8, 8)) == CONTENT[8:16]
    done, pending = await asyncio.wait([asyncio.ensure_future(image.pread(8, at)) for at in range(20)])
    assert {len(done), len(pending)} == {20, 0}
    assert [await one for one in asyncio.as_completed([image.pread(1, 0), image.pread(1, 0)])] == [b"\0"] * 2
    called: list[object] = []
    future = asyncio.ensure_future(image.pread(8, 0))
    future.add_done_callback(called.append)
    assert called == []
    await asyncio.sleep(0.01)
    assert called == [future]


async def test_each_operation_that_somebody_holds_has_a_future_of_its_own() -> None:
    image = pyimago.FormatAccess(await pyimago.Raw.open_image(memory()))
    buf = bytearray(8)
    await image.read(buf, 0)
    held: list[Any] = [image.read(buf, at) for at in range(8)]
    assert len(set(held)) == 8
    done, _ = await asyncio.wait(held)
    assert done == set(held)
    assert [await one for one in asyncio.as_completed(held)] == [None] * 8


def test_a_closed_loop_is_let_go() -> None:
    async def read() -> weakref.ref[asyncio.AbstractEventLoop]:
        image = pyimago.FormatAccess(await pyimago.Raw.open_image(memory()))
        await image.read(bytearray(8), 0)
        await image.close()
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(read())
    gc.collect()
    assert loop() is None


async def test_a_failing_callback_is_reported_to_the_loop() -> None:
    image = pyimago.FormatAccess(await pyimago.Raw.open_image(memory()))
    reported: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, told: reported.append(told["exception"]))
    error = LookupError("callback")

    def fail(_: object) -> None:
        raise error

    asyncio.ensure_future(image.pread(8, 0)).add_done_callback(fail)
    await until(lambda: bool(reported))
    assert reported == [error]


def test_an_operation_needs_a_running_loop() -> None:
    image = pyimago.FormatAccess(pyimago.Raw.open_image_sync(memory()))
    with pytest.raises(RuntimeError, match="no running event loop"):
        image.read(bytearray(1), 0)


def test_a_loop_closed_with_operations_in_flight_lets_their_memory_go() -> None:
    buf = bytearray(8)
    futures: list[object] = []

    async def leave() -> None:
        image = await slow(0.3)
        futures.append(image.read(buf, 0))

    loop = asyncio.new_event_loop()
    alive = weakref.ref(loop)
    loop.run_until_complete(leave())
    loop.close()
    assert is_locked(buf)
    futures.clear()
    del loop
    ended = threading.Event()
    for _ in range(1000):
        if not is_locked(buf):
            break
        ended.wait(0.01)
    assert not is_locked(buf)
    gc.collect()
    assert alive() is None


def test_each_thread_may_have_a_loop_of_its_own() -> None:
    shared = pyimago.FormatAccess(pyimago.Raw.open_image_sync(pyimago.Throttled(memory(), latency=0.001)))

    async def use(number: int) -> bytes:
        parts = await asyncio.gather(*(shared.pread(8, 8 * (number + at)) for at in range(50)))
        return b"".join(parts)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: asyncio.run(use(number)), range(8)))
    assert found == [CONTENT[8 * number : 8 * number + 400] for number in range(8)]


def test_threads_share_a_synchronous_image() -> None:
    image = pyimago.SyncFormatAccess(pyimago.Raw.open_image_sync(memory(), write=True))

    def use(number: int) -> None:
        own = number * 65_536
        for round_ in range(200):
            image.write(bytes([number, round_]) * 100, own)
            assert image.pread(200, own) == bytes([number, round_]) * 100

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    image.close()


class _NoReaders(asyncio.SelectorEventLoop):
    """A loop that cannot watch descriptors, as Windows' default one."""

    def add_reader(self, fd: object, callback: object, *args: object) -> None:
        raise NotImplementedError


def test_a_loop_that_cannot_watch_descriptors() -> None:
    async def use() -> None:
        image = await slow(0.01)
        assert await asyncio.gather(*(image.pread(8, 8 * at) for at in range(10))) == [
            CONTENT[8 * at : 8 * at + 8] for at in range(10)
        ]

    for _ in range(2):
        loop = _NoReaders()
        loop.run_until_complete(use())
        loop.close()


def test_a_forked_child_is_told_to_open_again() -> None:
    program = """
        import asyncio, os, sys, warnings
        import pyimago

        warnings.simplefilter("ignore")
        sync = pyimago.SyncFormatAccess(pyimago.Raw.open_image_sync(pyimago.Memory(b"content"), write=True))

        async def use(image):
            return await image.pread(7, 0)

        async def slow():
            storage = pyimago.Throttled(pyimago.Memory(b"content"), latency=0.01)
            return await use(pyimago.FormatAccess(await pyimago.Raw.open_image(storage)))

        awaited = pyimago.FormatAccess(pyimago.Raw.open_image_sync(pyimago.Memory(b"content")))
        assert asyncio.run(slow()) == b"content"
        child = os.fork()
        if child == 0:
            for use_parents in (lambda: sync.pread(7, 0), lambda: asyncio.run(use(awaited))):
                try:
                    use_parents()
                except RuntimeError as error:
                    assert "fork" in str(error), error
                else:
                    raise AssertionError("the parent's image was used")
            assert asyncio.run(slow()) == b"content"
            sys.exit(7)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
        assert sync.pread(7, 0) == b"content"
        print("done")
    """
    assert run(program).strip() == "done"


def test_a_subinterpreter_is_told_to_use_the_main_one() -> None:
    program = """
        import pyimago
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters

        interpreters.run_string(interpreters.create(), '''if True:
            try:
                import pyimago
            except ImportError as error:
                print(error, flush=True)
        ''')
    """
    assert "interpreter" in run(program)


@pytest.mark.parametrize("end", ["", "sys.exit()", "raise KeyboardInterrupt"])
def test_the_interpreter_may_end_with_operations_in_flight(end: str) -> None:
    program = f"""
        import asyncio, sys
        import pyimago

        async def leave():
            storage = pyimago.Throttled(pyimago.Memory(1000), latency=0.2)
            image = pyimago.FormatAccess(await pyimago.Raw.open_image(storage))
            kept.extend(image.read(bytearray(100), 0) for _ in range(50))

        kept = []
        loop = asyncio.new_event_loop()
        loop.run_until_complete(leave())
        print("left", flush=True)
        {end}
    """
    code = {"raise KeyboardInterrupt": -signal.SIGINT}.get(end, 0)
    assert run(program, code).strip() == "left"


def test_the_interpreter_may_end_while_a_close_waits_for_reads_that_the_loop_put_off() -> None:
    program = """
        import asyncio
        import pyimago

        async def leave():
            image = pyimago.FormatAccess(await pyimago.Raw.open_image(pyimago.Memory(1 << 20)))
            kept.extend(image.read(bytearray(1 << 16), 0) for _ in range(500))
            assert not kept[-1].done()
            kept.append(image.close())

        kept = []
        loop = asyncio.new_event_loop()
        loop.run_until_complete(leave())
        print("left", flush=True)
    """
    assert run(program).strip() == "left"


def test_a_forked_child_may_go_on_with_its_parents_loop() -> None:
    program = """
        import asyncio, os, sys, warnings
        import pyimago

        warnings.simplefilter("ignore")

        async def slow(content):
            storage = pyimago.Throttled(pyimago.Memory(content), latency=0.01)
            image = pyimago.FormatAccess(await pyimago.Raw.open_image(storage))
            return await image.pread(7, 0)

        loop = asyncio.SelectorEventLoop(__import__("selectors").SelectSelector())
        assert loop.run_until_complete(slow(b"parents")) == b"parents"
        child = os.fork()
        if child == 0:
            for _ in range(20):
                assert loop.run_until_complete(slow(b"child's")) == b"child's"
            os._exit(7)
        for _ in range(20):
            assert loop.run_until_complete(slow(b"parents")) == b"parents"
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
        loop.close()
        print("done")
    """
    assert run(program).strip() == "done"


def run(program: str, code: int = 0, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.mark.parametrize("uring", ["0", "1"])
def test_direct_reads_by_ring_and_by_pool(tmp_path: Path, uring: str) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(CONTENT)
    program = f"""
        import asyncio, mmap, sys
        import pyimago

        async def main():
            options = pyimago.StorageOpenOptions(filename={str(path)!r}, direct=True)
            try:
                file = await pyimago.File.open(options)
            except OSError:
                print("no direct I/O")  # tmpfs
                return
            image = pyimago.FormatAccess(await pyimago.Raw.open_image(file))
            content = open({str(path)!r}, "rb").read()
            whole = mmap.mmap(-1, image.size)
            view = memoryview(whole)
            await asyncio.gather(
                *(image.read(view[at:at + 4096], at) for at in range(0, image.size, 4096))
            )
            assert whole[:] == content
            assert await image.pread(10, 5) == content[5:15]
            assert await image.pread(300_000, 1) == content[1:300_001]
            await image.close()
            print("read")

        asyncio.run(main())
    """
    assert run(program, PYIMAGO_IO_URING=uring).strip() in {"read", "no direct I/O"}
