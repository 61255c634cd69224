"""Snapshots inside an image in a file: taken, applied, deleted; awaited in `pyimago.aio.snapshot`.

Of an image that is open, `image.snapshots` does the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyimago._faces import Plan, verb, within

if TYPE_CHECKING:
    import builtins

    from pyimago._native import Snapshot
    from pyimago._types import Format, Place, Secret

__all__ = ["list", "create", "apply", "delete", "rename"]


@verb
def list(
    path: Place,
    *,
    format: Format | None = None,
    secret: Secret | None = None,
) -> Plan[builtins.list[Snapshot]]:
    """The snapshots inside the image at `path`, in the order of their table.

    Raises:
        UnsupportedFeatureError: The format has no snapshots.
        ImagoError: The file is no image of that format, or is locked.
        OSError: The file cannot be read.
    """
    return within(path, lambda image: image.snapshots.list(), write=False, format=format, secret=secret)


@verb
def create(
    path: Place,
    name: str,
    *,
    id: str | None = None,
    format: Format | None = None,
    secret: Secret | None = None,
) -> Plan[Snapshot]:
    """Keep the disk of the image at `path` as it is now, under `name`; durable at the end.

    Args:
        path: The image, which nobody else may have open.
        name: At most 255 bytes; others may have it, too.
        id: Of the snapshot, unique in the image; the next number unless given.
        format: The image's format; probed unless given.
        secret: What opens it if it is encrypted, as in `open`.

    Raises:
        ValueError: The name or the id cannot be.
        UnsupportedFeatureError: The image can have no snapshots, or no more.
        ImagoError: The file is no image of that format, or is in use.
        OSError: The file cannot be read or written.
    """
    return within(path, lambda image: image.snapshots.create(name, id=id), format=format, secret=secret)


@verb
def apply(
    path: Place,
    snapshot: str,
    *,
    format: Format | None = None,
    secret: Secret | None = None,
) -> Plan[None]:
    """Make the disk of the image at `path` what it was when `snapshot` (an id or a name) was taken.

    Its size, too; what was written since is lost. Either all of that happens or nothing, whatever ends it in
    between. Raises as `delete` does.
    """
    return within(path, lambda image: image.snapshots.apply(snapshot), format=format, secret=secret)


@verb
def delete(
    path: Place,
    snapshot: str,
    *,
    format: Format | None = None,
    secret: Secret | None = None,
) -> Plan[None]:
    """Remove `snapshot` (an id or a name) from the image at `path`; the space that only it takes is free.

    Raises:
        ValueError: There is no such snapshot.
        ImagoError: The file is no image of that format, or is in use.
        OSError: The file cannot be read or written.
    """
    return within(path, lambda image: image.snapshots.delete(snapshot), format=format, secret=secret)


@verb
def rename(
    path: Place,
    snapshot: str,
    name: str,
    *,
    format: Format | None = None,
    secret: Secret | None = None,
) -> Plan[None]:
    """Give `snapshot` (an id or a name) in the image at `path` another name. Raises as `delete` does."""
    return within(path, lambda image: image.snapshots.rename(snapshot, name), format=format, secret=secret)
