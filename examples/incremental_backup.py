"""Incremental backup of a disk: `incremental_backup.py IMAGE FOLDER`, each day while the VM is off.

The first run copies the disk to FOLDER/0000.qcow2 and has the image note what is written from then on,
in a dirty bitmap. Each further run copies only that, to an overlay over the backup before: every backup
is an image that shows the whole disk of its day. A VM, qemu-img or pyimago may have written meanwhile;
all keep the bitmap.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pyimago

BITMAP = "backup"
CHUNK = 4 << 20


def copy(disk: pyimago.SyncFormatAccess, backup: Path, ranges: Iterable[tuple[int, int]]) -> int:
    """Copy the ranges of `disk` to the image at `backup`, durably; the bytes that were copied."""
    copied = 0
    with pyimago.open(backup, write=True, format="qcow2") as target:
        for offset, length in ranges:
            for at in range(offset, offset + length, CHUNK):
                piece = min(CHUNK, offset + length - at)
                target.write(disk.pread(piece, at), at)
                copied += piece
    return copied


def back_up(path: Path, folder: Path) -> str:
    """Make the next backup; what was done."""
    done = sorted(folder.glob("[0-9]*.qcow2"))
    backup, unfinished = folder / f"{len(done):04}.qcow2", folder / "unfinished.qcow2"
    # Open for writing, and so locked: nobody changes the disk before the bitmap is cleared.
    with pyimago.open(path, write=True, format="qcow2") as disk:
        folder.mkdir(exist_ok=True)
        bitmaps = {bitmap.name: bitmap for bitmap in disk.bitmaps.list()}
        trusted = done and BITMAP in bitmaps and "in-use" not in bitmaps[BITMAP].flags
        if trusted:
            pyimago.create(
                unfinished,
                disk.size,
                format="qcow2",
                backing=done[-1].name,
                backing_format="qcow2",
                overwrite=True,
            )
            copied = copy(disk, unfinished, disk.bitmaps.ranges(BITMAP))
        else:  # the first one; or a crash left a bitmap that may lack something
            pyimago.create(unfinished, disk.size, format="qcow2", overwrite=True)
            copied = copy(disk, unfinished, ((e.offset, e.length) for e in disk.extents() if e.data))
        unfinished.rename(backup)  # whole and durable: only now may the bitmap forget
        if trusted:
            disk.bitmaps.clear(BITMAP)
        else:
            if BITMAP in bitmaps:
                disk.bitmaps.remove(BITMAP)
            disk.bitmaps.add(BITMAP)
    return f"{backup.name}: {'what changed' if trusted else 'everything'}, {copied} bytes"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        print(back_up(Path(sys.argv[1]), Path(sys.argv[2])))
    except (OSError, pyimago.ImagoError) as error:
        sys.exit(f"incremental_backup: {error}")
