"""One face for both classes: every call is awaited, whichever class is behind it."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
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
    async def open(self, path: Path | str, **options: Any) -> AsyncIterator[Image]:
        """`pyimago.open` or `pyimago.aio.open`, under `with`."""
        if self.name == "sync":
            with pyimago.open(path, **options) as image:
                yield Image(image)
        else:
            async with pyimago.aio.open(path, **options) as awaited:
                yield Image(awaited)

    async def call(self, verb: str, *arguments: Any, **options: Any) -> Any:
        """`pyimago.VERB` or `pyimago.aio.VERB`."""
        module = pyimago if self.name == "sync" else pyimago.aio
        return await settle(getattr(module, verb)(*arguments, **options))
