"""The main job on a real image: an ext4 file system in a compressed qcow2 overlay over a compressed base.

Reads it synchronous and awaited, writes to a copy, converts the copy to raw, and checks each step.
Run by `make demo`.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import shutil
import tempfile
from pathlib import Path

import pyimago
import pyimago.aio
from mini_ext4 import Ext4

DATA = Path(__file__).parent.parent / "tests" / "data" / "demo"
CHUNK = 64 * 1024
NOTE_AT = 508 * 1024
NOTE = b"written through pyimago"


def ranges(size: int) -> list[tuple[int, int]]:
    """(offset, length) of the chunks that make up `size` bytes."""
    return [(offset, min(CHUNK, size - offset)) for offset in range(0, size, CHUNK)]


def content(path: Path) -> bytes:
    """The whole guest content, read synchronous into one buffer."""
    with pyimago.open(path) as image:
        buffer = bytearray(image.size)
        image.read(buffer, 0)
        return bytes(buffer)


async def content_awaited(path: Path) -> bytes:
    """The same content, awaited: all chunks in flight at once, each into its slice of the buffer."""
    async with pyimago.aio.open(path) as image:
        buffer = memoryview(bytearray(image.size))
        await asyncio.gather(*(image.read(buffer[at : at + n], at) for at, n in ranges(image.size)))
        return bytes(buffer)


def show_image(path: Path) -> None:
    """What the image is, where its bytes live, and a text file of the guest's."""
    print(f"{path.name} over {pyimago.info(path).backing_filename}")
    with pyimago.open(path) as image:
        extents = list(image.extents())
        for depth, place in enumerate(("in the overlay", "in its backing file")):
            stored = sum(extent.length for extent in extents if extent.data and extent.depth == depth)
            print(f"  {stored // 1024:4} KiB of data {place}")
        with io.BufferedReader(image.file()) as disk:
            guest = Ext4(disk)
            print(f"  ext4 volume {guest.label!r}, /hello.txt:")
            print("    " + guest.read("hello.txt").decode().strip().replace("\n", "\n    "))


def write_copy(copy: Path, original: bytes) -> bytes:
    """Write a note into `copy`; what it holds then is the original but for the note."""
    with pyimago.open(copy, write=True) as image:
        image.write(NOTE, NOTE_AT)
    expected = bytearray(original)
    expected[NOTE_AT : NOTE_AT + len(NOTE)] = NOTE
    written = content(copy)
    assert written == expected, "the copy differs elsewhere than where it was written"
    return written


def main() -> None:
    """Run the demonstration; an AssertionError if anything is not as it must be."""
    show_image(DATA / "guest.qcow2")

    original = content(DATA / "guest.qcow2")
    digest = hashlib.sha256(original).hexdigest()
    awaited = asyncio.run(content_awaited(DATA / "guest.qcow2"))
    assert awaited == original, "awaited and synchronous reads differ"
    assert digest == (DATA / "SHA256SUMS").read_text().split()[0], "not the content that QEMU wrote"
    print(
        f"read {len(original)} bytes synchronous and awaited: equal, as QEMU wrote them, sha256 {digest[:12]}"
    )

    with tempfile.TemporaryDirectory() as folder:
        for name in ("base.qcow2", "guest.qcow2"):
            shutil.copyfile(DATA / name, Path(folder, name))
        copy, raw = Path(folder, "guest.qcow2"), Path(folder, "guest.raw")

        written = write_copy(copy, original)
        print(f"wrote {len(NOTE)} bytes at {NOTE_AT} of a copy: only they differ")

        pyimago.convert(copy, raw, format="raw")
        assert raw.read_bytes() == written, "the raw image differs from the qcow2 image"
        print(f"converted the copy to raw: {raw.stat().st_size} bytes, equal")


if __name__ == "__main__":
    main()
