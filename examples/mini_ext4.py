"""Just enough of ext4 to find a small file: an image's `file()` is a file like any other."""

from __future__ import annotations

import struct
from typing import BinaryIO

ROOT_INODE = 2
EXTENT_MAGIC = 0xF30A


class Ext4:
    """A read-only ext4 file system of one block group, files of at most four extents."""

    def __init__(self, disk: BinaryIO) -> None:
        self._disk = disk
        superblock = self._pread(1024, 1024)
        (magic,) = struct.unpack_from("<H", superblock, 56)
        if magic != 0xEF53:
            raise ValueError("no ext4 file system here")
        (first_block, log_block_size) = struct.unpack_from("<20xII", superblock)
        self._block_size = 1024 << log_block_size
        (self._inode_size,) = struct.unpack_from("<H", superblock, 88)
        self.label = superblock[120:136].rstrip(b"\0").decode()
        group = self._pread((first_block + 1) * self._block_size, 32)
        (self._inode_table,) = struct.unpack_from("<8xI", group)

    def read(self, path: str) -> bytes:
        """The content of the file at `path`."""
        inode = ROOT_INODE
        for name in path.strip("/").split("/"):
            inode = self._entries(inode)[name.encode()]
        return self._content(inode)

    def _entries(self, inode: int) -> dict[bytes, int]:
        directory, entries, at = self._content(inode), dict[bytes, int](), 0
        while at < len(directory):
            number, step, name_length = struct.unpack_from("<IHB", directory, at)
            entries[directory[at + 8 : at + 8 + name_length]] = number
            at += step
        return entries

    def _content(self, inode: int) -> bytes:
        at = self._inode_table * self._block_size + (inode - 1) * self._inode_size
        record = self._pread(at, self._inode_size)
        (size,) = struct.unpack_from("<I", record, 4)
        magic, count, depth = struct.unpack_from("<HH2xH", record, 40)
        if magic != EXTENT_MAGIC or depth:
            raise ValueError(f"inode {inode} keeps its blocks in a way this example does not read")
        content = bytearray(size)
        for block, length, high, low in struct.iter_unpack("<IHHI", record[52 : 52 + 12 * count]):
            start = block * self._block_size
            piece = self._pread((high << 32 | low) * self._block_size, length * self._block_size)
            content[start : start + len(piece)] = piece
        return bytes(content[:size])

    def _pread(self, offset: int, length: int) -> bytes:
        self._disk.seek(offset)
        data = self._disk.read(length)
        if len(data) != length:
            raise EOFError(f"wanted {length} bytes at {offset}")
        return data
