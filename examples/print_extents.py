"""Print where an image's bytes live: `print_extents.py IMAGE`."""

from __future__ import annotations

import sys

import pyimago

HEADER = ("offset", "length", "kind", "depth", "host offset", "file")


def row(*columns: object) -> str:
    """One line of the table."""
    offset, length, kind, depth, host_offset, file = columns
    return f"{offset:>14} {length:>14}  {kind:<11} {depth:>5} {host_offset:>14}  {file}".rstrip()


def main(path: str) -> None:
    """Print the extents of the image at `path`, and how much of it is stored."""
    stored = 0
    with pyimago.open(path) as image:
        print(row(*HEADER))
        for extent in image.extents():
            kind = "compressed" if extent.compressed else "data" if extent.data else "zero"
            stored += extent.length if extent.data else 0
            at = "-" if extent.host_offset is None else extent.host_offset
            print(row(extent.offset, extent.length, kind, extent.depth, at, extent.host_file or "-"))
        print(f"{stored} of {image.size} bytes are data")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1])
    except (OSError, pyimago.ImagoError) as error:
        sys.exit(f"print_extents: {error}")
