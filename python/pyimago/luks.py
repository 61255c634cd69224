"""Key slots of encrypted images: bare LUKS, and qcow2 with LUKS inside; awaited in `pyimago.aio.luks`.

A LUKS header has eight key slots; each active one holds the key of the disk for one secret. Nothing of the
disk is encrypted anew when they change. Nobody else can have the image open meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyimago import _native
from pyimago._faces import Plan, native, verb

if TYPE_CHECKING:
    from pyimago._types import Format, KeySlot, Secret, StrPath

__all__ = ["key_slots", "add_key", "change_key", "erase_key"]


@verb
def key_slots(path: StrPath, *, format: Format | None = None) -> Plan[list[KeySlot]]:
    """The eight key slots of the image at `path`. That needs no secret, and no lock is taken.

    Raises:
        ValueError: The image is not encrypted with LUKS.
        InvalidImageError: The file is no image of that format.
        OSError: The file cannot be read.
    """
    from pyimago._types import ImageInfo, KeySlot

    documents = native(_native.info, _native.info_awaited, path, format, None, "off")
    return documents.then(lambda documents: KeySlot.all_of(ImageInfo.from_document(documents[0])))


@verb
def add_key(
    path: StrPath,
    *,
    secret: Secret,
    new_secret: Secret,
    slot: int | None = None,
    iter_time: int | None = None,
    iterations: int | None = None,
    format: Format | None = None,
) -> Plan[int]:
    """Let `new_secret` open the image at `path` too; returns the number of its key slot. Durable at the end.

    Args:
        path: The image's file.
        secret: One that opens it already.
        new_secret: The one to add.
        slot: An inactive key slot, 0 to 7; None takes the first.
        iter_time: Milliseconds that trying a secret shall take on this machine: 2000 unless given.
        iterations: Iterations of PBKDF2, instead.
        format: The image's format, "qcow2" or "luks"; probed unless given.

    Raises:
        WrongSecretError: `secret` does not open the image.
        ValueError: No key slot is free, that one is active, or the image is not encrypted with LUKS.
        ImageLockedError: Somebody else has the image open.
        OSError: The file cannot be read or written.
    """
    return native(
        _native.add_key,
        _native.add_key_awaited,
        path,
        format,
        secret,
        new_secret,
        slot,
        iter_time,
        iterations,
    )


@verb
def change_key(
    path: StrPath,
    *,
    secret: Secret,
    new_secret: Secret,
    iter_time: int | None = None,
    iterations: int | None = None,
    format: Format | None = None,
) -> Plan[int]:
    """Let `new_secret` open the image at `path` in place of `secret`; returns the number of its key slot.

    It takes an inactive slot, and erases the old one when the new one is durable: one of the two secrets
    opens the image at any time. Arguments and errors are those of `add_key`.
    """
    return native(
        _native.change_key,
        _native.change_key_awaited,
        path,
        format,
        secret,
        new_secret,
        iter_time,
        iterations,
    )


@verb
def erase_key(
    path: StrPath,
    *,
    secret: Secret | None = None,
    slot: int | None = None,
    force: bool = False,
    format: Format | None = None,
) -> Plan[list[int]]:
    """Erase key slots of the image at `path`, and return their numbers; the key material is overwritten.

    Args:
        path: The image's file.
        secret: Erase every slot that it opens; or
        slot: erase the slot of this number, whoever's it is.
        force: Also if no active slot is left. Nobody ever reads the disk again then.
        format: The image's format, "qcow2" or "luks"; probed unless given.

    Raises:
        WrongSecretError: `secret` opens no slot.
        ValueError: No active slot would be left; or the image is not encrypted with LUKS.
        ImageLockedError: Somebody else has the image open.
        OSError: The file cannot be read or written.
    """
    return native(_native.erase_key, _native.erase_key_awaited, path, format, secret, slot, force)
