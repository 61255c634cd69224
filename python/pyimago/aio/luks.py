"""The key slots of encrypted images, awaited: `pyimago.aio.luks`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyimago import _native

if TYPE_CHECKING:
    from pyimago._types import Format, KeySlot, Secret, StrPath

__all__ = ["key_slots", "add_key", "change_key", "erase_key"]


async def key_slots(path: StrPath, *, format: Format | None = None) -> list[KeySlot]:
    """As `pyimago.luks.key_slots`, awaited."""
    from pyimago import aio
    from pyimago._types import KeySlot

    return KeySlot.all_of(await aio.info(path, format=format))


async def add_key(
    path: StrPath,
    *,
    secret: Secret,
    new_secret: Secret,
    slot: int | None = None,
    iter_time: int | None = None,
    iterations: int | None = None,
    format: Format | None = None,
) -> int:
    """As `pyimago.luks.add_key`, awaited. Functions that return secrets are called on another thread."""
    return await _native.add_key_awaited(path, format, secret, new_secret, slot, iter_time, iterations)


async def change_key(
    path: StrPath,
    *,
    secret: Secret,
    new_secret: Secret,
    iter_time: int | None = None,
    iterations: int | None = None,
    format: Format | None = None,
) -> int:
    """As `pyimago.luks.change_key`, awaited. Functions that return secrets are called on another thread."""
    return await _native.change_key_awaited(path, format, secret, new_secret, iter_time, iterations)


async def erase_key(
    path: StrPath,
    *,
    secret: Secret | None = None,
    slot: int | None = None,
    force: bool = False,
    format: Format | None = None,
) -> list[int]:
    """As `pyimago.luks.erase_key`, awaited. Functions that return secrets are called on another thread."""
    return await _native.erase_key_awaited(path, format, secret, slot, force)
