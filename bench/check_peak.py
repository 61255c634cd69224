"""Run by itself: checks an image, or has `qemu-img` do it, and prints the peak of memory in MiB.

Our peak is the kernel's VmHWM, which begins with the process. A child's `ru_maxrss` begins with
what its parent had, which here is less than `qemu-img` takes.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path


def main(who: str, path: str) -> None:
    """Checks once."""
    if who == "qemu-img":
        subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=True)
        print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
        return
    import pyimago

    pyimago.check(path, format="qcow2")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].removesuffix("kB")) / 1024)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
