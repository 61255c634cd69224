"""One face for both classes: every call is awaited, whichever class is behind it."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

import pyimago
import pyimago.aio

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")


async def settle(result: Awaitable[T] | T) -> T:
    """What came back, or what it becomes."""
    if inspect.isawaitable(result):
        return await result
    return result


class Bitmaps:
    """The bitmaps of an open image of either class."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    async def list(self) -> list[pyimago.Bitmap]:
        found: list[pyimago.Bitmap] = await settle(self.raw.list())
        return found

    async def add(self, name: str, **options: Any) -> None:
        await settle(self.raw.add(name, **options))

    async def remove(self, name: str) -> None:
        await settle(self.raw.remove(name))

    async def clear(self, name: str) -> None:
        await settle(self.raw.clear(name))

    async def enable(self, name: str) -> None:
        await settle(self.raw.enable(name))

    async def disable(self, name: str) -> None:
        await settle(self.raw.disable(name))

    async def merge(self, target: str, source: str, image: Image | None = None) -> None:
        await settle(self.raw.merge(target, source, image=image and image.raw))

    async def ranges(self, name: str) -> Iterable[tuple[int, int]]:
        found = self.raw.ranges(name)
        if isinstance(found, AsyncIterator):
            return [run async for run in found]
        return [*found]


class Snapshots:
    """The snapshots of an open image of either class."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    async def list(self) -> list[pyimago.Snapshot]:
        found: list[pyimago.Snapshot] = await settle(self.raw.list())
        return found

    async def create(self, name: str, **options: Any) -> pyimago.Snapshot:
        made: pyimago.Snapshot = await settle(self.raw.create(name, **options))
        return made

    async def apply(self, snapshot: str) -> None:
        await settle(self.raw.apply(snapshot))

    async def delete(self, snapshot: str) -> None:
        await settle(self.raw.delete(snapshot))

    async def rename(self, snapshot: str, name: str) -> None:
        await settle(self.raw.rename(snapshot, name))


class Image:
    """An open image of either class."""

    def __init__(self, raw: pyimago.SyncFormatAccess | pyimago.FormatAccess) -> None:
        self.raw = raw

    # The buffers are `Any` on purpose: these tests pass what a type checker would refuse, too.
    async def read(self, buf: Any, offset: Any) -> None:
        await settle(self.raw.read(buf, offset))

    async def readv(self, bufs: Any, offset: int) -> None:
        await settle(self.raw.readv(bufs, offset))

    async def pread(self, length: int, offset: int) -> bytes:
        return await settle(self.raw.pread(length, offset))

    async def read_many(self, requests: Iterable[tuple[Any, int]]) -> None:
        await settle(self.raw.read_many(list(requests)))

    async def write(self, data: Any, offset: Any) -> None:
        await settle(self.raw.write(data, offset))

    async def writev(self, parts: Any, offset: int) -> None:
        await settle(self.raw.writev(parts, offset))

    async def write_many(self, requests: Iterable[tuple[Any, int]]) -> None:
        await settle(self.raw.write_many(list(requests)))

    async def write_compressed(self, data: Any, offset: Any, **options: Any) -> None:
        await settle(self.raw.write_compressed(data, offset, **options))

    async def write_zeroes(self, offset: int, length: int) -> None:
        await settle(self.raw.write_zeroes(offset, length))

    async def discard(self, offset: int, length: int) -> None:
        await settle(self.raw.discard(offset, length))

    async def extents(self, offset: int = 0, length: int | None = None) -> list[pyimago.Extent]:
        found = self.raw.extents(offset, length)
        if isinstance(found, AsyncIterator):
            return [extent async for extent in found]
        return list(found)

    async def flush(self) -> None:
        await settle(self.raw.flush())

    async def close(self) -> None:
        await settle(self.raw.close())

    async def content(self) -> bytes:
        return await self.pread(self.size, 0)

    async def resize(self, size: Any, **options: Any) -> None:
        await settle(self.raw.resize(size, **options))

    @property
    def snapshots(self) -> Snapshots:
        return Snapshots(self.raw.snapshots)

    @property
    def bitmaps(self) -> Bitmaps:
        return Bitmaps(self.raw.bitmaps)

    @property
    def size(self) -> int:
        return self.raw.size

    @property
    def format(self) -> str:
        return self.raw.format

    @property
    def writable(self) -> bool:
        return self.raw.writable

    @property
    def closed(self) -> bool:
        return self.raw.closed


class Face:
    """A way to use the API: `sync` or `awaited`."""

    def __init__(self, name: str) -> None:
        self.name = name

    @asynccontextmanager
    async def open(self, path: Path | str | pyimago.Storage, **options: Any) -> AsyncIterator[Image]:
        """`pyimago.open` or `pyimago.aio.open`, under `with`."""
        if self.name == "sync":
            with pyimago.open(path, **options) as image:
                yield Image(image)
        else:
            async with pyimago.aio.open(path, **options) as awaited:
                yield Image(awaited)

    async def call(self, verb: str, *arguments: Any, **options: Any) -> Any:
        """`pyimago.VERB` or `pyimago.aio.VERB`; the verb may be in a module, as `snapshot.list` is."""
        module = pyimago if self.name == "sync" else pyimago.aio
        return await settle(attrgetter(verb)(module)(*arguments, **options))
