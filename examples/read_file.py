"""One file out of an ext4 file system inside an image: no root, no mount, nothing written.

`read_file.py IMAGE /etc/hostname`. The image is whatever pyimago opens, with its backing chain; the file
system is on one of its partitions, or on the whole disk. A reader of such file systems in Python
(`pip install ext2py`) does the rest: `image.file()` is a file for it like any other.
"""

from __future__ import annotations

import io
import sys
from contextlib import suppress

from ext2py import ExtError, ExtFS, find_partitions

import pyimago


def read_file(path: str, name: str) -> bytes:
    """The content of the file `name` in the image at `path`.

    Raises:
        FileNotFoundError: No ext2, ext3 or ext4 file system of the image has it.
    """
    with pyimago.open(path) as image, io.BufferedReader(image.file(), 1 << 20) as disk:
        for offset in [partition.offset for partition in find_partitions(disk)] or [0]:
            # Another file system, or one without that file.
            with suppress(ExtError, FileNotFoundError), ExtFS(disk, offset) as system:
                return system.read_file(name)
    raise FileNotFoundError(f"{name} is in no ext4 file system of {path}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        sys.stdout.buffer.write(read_file(*sys.argv[1:]))
    except (OSError, pyimago.ImagoError) as error:
        sys.exit(f"read_file: {error}")
