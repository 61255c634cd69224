"""A disk as a standard file object."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pyimago import SyncFormatAccess


class ImageFile(io.RawIOBase):
    """The disk of an open image as a raw file: unbuffered, of fixed size, with a position of its own.

    Closing it leaves the image open. Wrap it in `io.BufferedReader` for many small reads.
    """

    def __init__(self, image: SyncFormatAccess) -> None:
        super().__init__()
        self._image = image
        self._position = 0

    @property
    def name(self) -> str | None:
        """The image's file, where it is in one."""
        return self._image.filename

    def readable(self) -> bool:
        """True: every image can be read."""
        self._check_open()
        return True

    def writable(self) -> bool:
        """Whether the image was opened for writing."""
        self._check_open()
        return self._image.writable

    def seekable(self) -> bool:
        """True: the position can be set."""
        self._check_open()
        return True

    def tell(self) -> int:
        """The position, in bytes."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Set the position, from the start, itself or the end, and return it; it may be past the end."""
        self._check_open()
        match whence:
            case os.SEEK_SET:
                position = offset
            case os.SEEK_CUR:
                position = self._position + offset
            case os.SEEK_END:
                position = self._image.size + offset
            case _:
                raise ValueError(f"whence is 0, 1 or 2, not {whence}")
        if position < 0:
            raise ValueError(f"position {position} is negative")
        self._position = position
        return position

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill `buffer` from the position on, as far as the disk goes, and return how many bytes it got."""
        self._check_open()
        with memoryview(buffer) as view, view.cast("B") as octets, octets[: self._left()] as part:
            self._image.read(part, self._position)
            self._position += len(part)
            return len(part)

    def readall(self) -> bytes:
        """What is left of the disk from the position on."""
        self._check_open()
        data = self._image.pread(self._left(), min(self._position, self._image.size))
        self._position += len(data)
        return data

    def write(self, data: Buffer, /) -> int:
        """Write `data` at the position, as far as the disk goes, and return how many bytes that were.

        Raises:
            ValueError: The position is at the end of the disk or past it, which cannot grow.
        """
        self._check_open()
        with memoryview(data) as view, view.cast("B") as octets, octets[: self._left()] as part:
            if octets and not part:
                raise ValueError(
                    f"position {self._position} is not inside the disk of {self._image.size} bytes"
                )
            self._image.write(part, self._position)
            self._position += len(part)
            return len(part)

    def flush(self) -> None:
        """Make what was written durable, if the image was opened for writing."""
        super().flush()
        if self._image.writable and not self._image.closed:
            self._image.flush()

    def _left(self) -> int:
        return max(self._image.size - self._position, 0)

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
