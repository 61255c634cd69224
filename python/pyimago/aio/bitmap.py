"""Persistent dirty bitmaps of an image in a file, awaited: `pyimago.aio.bitmap`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import builtins

    from pyimago._native import Bitmap
    from pyimago._types import Format, Implicit, Place, Secret

__all__ = ["list", "add", "remove", "clear", "enable", "disable", "merge"]


async def list(
    path: Place,
    *,
    format: Format | None = None,
    secret: Secret | None = None,
    implicit: Implicit = "beside",
) -> builtins.list[Bitmap]:
    """As `pyimago.bitmap.list`, awaited."""
    from pyimago import aio

    async with aio.open(path, format=format, secret=secret, backing=None, implicit=implicit) as image:
        return await image.bitmaps.list()


async def add(
    path: Place,
    name: str,
    *,
    granularity: int | None = None,
    enabled: bool = True,
    format: Format | None = None,
    secret: Secret | None = None,
    implicit: Implicit = "beside",
) -> None:
    """As `pyimago.bitmap.add`, awaited."""
    from pyimago import aio

    async with aio.open(
        path, write=True, format=format, secret=secret, backing=None, implicit=implicit
    ) as image:
        await image.bitmaps.add(name, granularity=granularity, enabled=enabled)


async def remove(
    path: Place,
    name: str,
    *,
    format: Format | None = None,
    secret: Secret | None = None,
    implicit: Implicit = "beside",
) -> None:
    """As `pyimago.bitmap.remove`, awaited."""
    from pyimago import aio

    async with aio.open(
        path, write=True, format=format, secret=secret, backing=None, implicit=implicit
    ) as image:
        await image.bitmaps.remove(name)


async def clear(
    path: Place,
    name: str,
    *,
    format: Format | None = None,
    secret: Secret | None = None,
    implicit: Implicit = "beside",
) -> None:
    """As `pyimago.bitmap.clear`, awaited."""
    from pyimago import aio

    async with aio.open(
        path, write=True, format=format, secret=secret, backing=None, implicit=implicit
    ) as image:
        await image.bitmaps.clear(name)


async def enable(
    path: Place,
    name: str,
    *,
    format: Format | None = None,
    secret: Secret | None = None,
    implicit: Implicit = "beside",
) -> None:
    """As `pyimago.bitmap.enable`, awaited."""
    from pyimago import aio

    async with aio.open(
        path, write=True, format=format, secret=secret, backing=None, implicit=implicit
    ) as image:
        await image.bitmaps.enable(name)


async def disable(
    path: Place,
    name: str,
    *,
    format: Format | None = None,
    secret: Secret | None = None,
    implicit: Implicit = "beside",
) -> None:
    """As `pyimago.bitmap.disable`, awaited."""
    from pyimago import aio

    async with aio.open(
        path, write=True, format=format, secret=secret, backing=None, implicit=implicit
    ) as image:
        await image.bitmaps.disable(name)


async def merge(
    path: Place,
    target: str,
    source: str,
    *,
    source_path: Place | None = None,
    format: Format | None = None,
    source_format: Format | None = None,
    secret: Secret | None = None,
    source_secret: Secret | None = None,
    implicit: Implicit = "beside",
) -> None:
    """As `pyimago.bitmap.merge`, awaited."""
    from pyimago import aio

    async with aio.open(
        path, write=True, format=format, secret=secret, backing=None, implicit=implicit
    ) as image:
        if source_path is None:
            await image.bitmaps.merge(target, source)
            return
        async with aio.open(
            source_path, format=source_format, secret=source_secret, backing=None, implicit=implicit
        ) as other:
            await image.bitmaps.merge(target, source, image=other)
