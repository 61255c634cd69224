"""Snapshots inside an image in a file, awaited: `pyimago.aio.snapshot`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import builtins

    from pyimago._native import Snapshot
    from pyimago._types import Format, Place, Secret

__all__ = ["list", "create", "apply", "delete", "rename"]


async def list(
    path: Place,
    *,
    format: Format | None = None,
    secret: Secret | None = None,
) -> builtins.list[Snapshot]:
    """As `pyimago.snapshot.list`, awaited."""
    from pyimago import aio

    async with aio.open(path, format=format, secret=secret, backing=None) as image:
        return await image.snapshots.list()


async def create(
    path: Place,
    name: str,
    *,
    id: str | None = None,
    format: Format | None = None,
    secret: Secret | None = None,
) -> Snapshot:
    """As `pyimago.snapshot.create`, awaited."""
    from pyimago import aio

    async with aio.open(path, write=True, format=format, secret=secret, backing=None) as image:
        return await image.snapshots.create(name, id=id)


async def apply(
    path: Place,
    snapshot: str,
    *,
    format: Format | None = None,
    secret: Secret | None = None,
) -> None:
    """As `pyimago.snapshot.apply`, awaited."""
    from pyimago import aio

    async with aio.open(path, write=True, format=format, secret=secret, backing=None) as image:
        await image.snapshots.apply(snapshot)


async def delete(
    path: Place,
    snapshot: str,
    *,
    format: Format | None = None,
    secret: Secret | None = None,
) -> None:
    """As `pyimago.snapshot.delete`, awaited."""
    from pyimago import aio

    async with aio.open(path, write=True, format=format, secret=secret, backing=None) as image:
        await image.snapshots.delete(snapshot)


async def rename(
    path: Place,
    snapshot: str,
    name: str,
    *,
    format: Format | None = None,
    secret: Secret | None = None,
) -> None:
    """As `pyimago.snapshot.rename`, awaited."""
    from pyimago import aio

    async with aio.open(path, write=True, format=format, secret=secret, backing=None) as image:
        await image.snapshots.rename(snapshot, name)
