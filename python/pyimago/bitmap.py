"""Persistent dirty bitmaps of an image in a file; awaited in `pyimago.aio.bitmap`.

Of an image that is open, `image.bitmaps` does the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyimago._faces import Plan, verb, within

if TYPE_CHECKING:
    import builtins
    from collections.abc import Awaitable

    from pyimago._faces import Image
    from pyimago._native import Bitmap
    from pyimago._types import Format, Implicit, Place, Secret

__all__ = ["list", "add", "remove", "clear", "enable", "disable", "merge"]


@verb
def list(
    path: Place,
    *,
    format: Format | None = None,
    secret: Secret | None = None,
    implicit: Implicit = "beside",
) -> Plan[builtins.list[Bitmap]]:
    """The persistent bitmaps in the image at `path`.

    Raises:
        UnsupportedFeatureError: The format has no bitmaps.
        ImagoError: The file is no image of that format, or is locked.
        OSError: The file cannot be read.
    """
    return within(
        path, lambda image: image.bitmaps.list(), write=False, format=format, secret=secret, implicit=implicit
    )


@verb
def add(
    path: Place,
    name: str,
    *,
    granularity: int | None = None,
    enabled: bool = True,
    format: Format | None = None,
    secret: Secret | None = None,
    implicit: Implicit = "beside",
) -> Plan[None]:
    """Make the bitmap `name` in the image at `path`; nothing is dirty in it.

    Args:
        path: The image, which nobody else may have open.
        name: Unique in the image.
        granularity: Bytes of the disk that one bit stands for, a power of two; None takes what QEMU takes.
        enabled: Whether it records writes from now on.
        format: The image's format; probed unless given.
        secret: What opens it if it is encrypted, as in `open`.
        implicit: Which files that the image names may be opened, as in `open`; only a data file is.

    Raises:
        ValueError: The name is there already, or it or the granularity cannot be.
        UnsupportedFeatureError: The image can have no bitmaps.
        ImagoError: The file is no image of that format, or is in use.
        OSError: The file cannot be read or written.
    """
    return within(
        path,
        lambda image: image.bitmaps.add(name, granularity=granularity, enabled=enabled),
        format=format,
        secret=secret,
        implicit=implicit,
    )


@verb
def remove(
    path: Place,
    name: str,
    *,
    format: Format | None = None,
    secret: Secret | None = None,
    implicit: Implicit = "beside",
) -> Plan[None]:
    """Remove the bitmap `name`, also an inconsistent one. Raises as `clear` does."""
    return within(
        path, lambda image: image.bitmaps.remove(name), format=format, secret=secret, implicit=implicit
    )


@verb
def clear(
    path: Place,
    name: str,
    *,
    format: Format | None = None,
    secret: Secret | None = None,
    implicit: Implicit = "beside",
) -> Plan[None]:
    """Make everything clean in the bitmap `name` of the image at `path`.

    Raises:
        ValueError: There is no such bitmap, or it is inconsistent.
        ImagoError: The file is no image of that format, or is in use.
        OSError: The file cannot be read or written.
    """
    return within(
        path, lambda image: image.bitmaps.clear(name), format=format, secret=secret, implicit=implicit
    )


@verb
def enable(
    path: Place,
    name: str,
    *,
    format: Format | None = None,
    secret: Secret | None = None,
    implicit: Implicit = "beside",
) -> Plan[None]:
    """Let the bitmap `name` record writes from now on. Raises as `clear` does."""
    return within(
        path, lambda image: image.bitmaps.enable(name), format=format, secret=secret, implicit=implicit
    )


@verb
def disable(
    path: Place,
    name: str,
    *,
    format: Format | None = None,
    secret: Secret | None = None,
    implicit: Implicit = "beside",
) -> Plan[None]:
    """Let the bitmap `name` record no more writes. Raises as `clear` does."""
    return within(
        path, lambda image: image.bitmaps.disable(name), format=format, secret=secret, implicit=implicit
    )


@verb
def merge(
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
) -> Plan[None]:
    """Make dirty in the bitmap `target` of the image at `path` what is dirty in `source`.

    Args:
        path: The image, which nobody else may have open.
        target: The bitmap that changes.
        source: The other bitmap. The granularities need not be the same.
        source_path: The image that `source` is in, of the same size; None: the same image.
        format: The image's format; probed unless given.
        source_format: The other image's.
        secret: What opens the image if it is encrypted, as in `open`.
        source_secret: What opens the other one.
        implicit: Which files that the images name may be opened, as in `open`; only data files are.

    Raises:
        ValueError: A bitmap is not there or inconsistent, or the sizes differ.
        ImagoError: A file is no image of its format, or is in use.
        OSError: A file cannot be read or written.
    """

    def do(image: Image) -> Awaitable[None] | Plan[None] | None:
        if source_path is None:
            return image.bitmaps.merge(target, source)
        return within(
            source_path,
            lambda other: image.bitmaps.merge(target, source, image=other),
            write=False,
            format=source_format,
            secret=source_secret,
            implicit=implicit,
        )

    return within(path, do, format=format, secret=secret, implicit=implicit)
