"""Run by itself: reads an image at random and prints this process's peak of memory in MiB.

The peak is the kernel's VmHWM, which begins with the process; `ru_maxrss` would carry over the parent's.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pyimago

BLOCK = 4096


def main(path: str, count: int, places: int) -> None:
    """Reads as often where data are (`places`, evenly spread) as anywhere."""
    chance, buf = random.Random(0), bytearray(BLOCK)
    with pyimago.open(path) as image:
        for _ in range(count // 2):
            image.read(buf, chance.randrange(places) * (image.size // places))
            image.read(buf, chance.randrange(image.size // BLOCK) * BLOCK)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].removesuffix("kB")) / 1024)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
