"""Works of a process of their own: imports, the start of the command, and the peak of memory."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyimago

from .lab import Lab, python, run
from .measure import OURS, Cost, Sides, cost

PEAK = Path(__file__).with_name("peak.py")

IMPORT = """
import time
cpu, wall = time.process_time(), time.perf_counter()
import {module}
print(time.process_time() - cpu, time.perf_counter() - wall)
"""


def imported(module: str) -> Cost:
    """What the import costs in a fresh interpreter, without the start of it."""
    cpu, wall = python("-c", IMPORT.format(module=module)).split()
    return Cost(float(cpu), float(wall))


@contextmanager
def imports(lab: Lab) -> Generator[Sides]:  # noqa: ARG001 - every row is called with the lab
    """`import pyimago` against `import asyncio`."""
    yield {OURS: partial(imported, "pyimago"), "asyncio": partial(imported, "asyncio")}


@contextmanager
def start(lab: Lab, arguments: Sequence[str]) -> Generator[Sides]:
    """The installed command, from the shell's view, above an interpreter that does nothing."""
    image = lab.folder / "start.qcow2"
    pyimago.create(image, 1 << 30, format="qcow2", overwrite=True)
    command = str(Path(sys.executable).with_name("pyimago"))
    words = [str(image) if word == "IMAGE" else word for word in arguments]

    def above() -> Cost:
        ours = cost(1, lambda: run(command, *words))
        nothing = cost(1, lambda: run(sys.executable, "-c", "pass"))
        return Cost(ours.cpu, ours.wall, late=1000 * (ours.wall - nothing.wall))

    yield {OURS: above}
    image.unlink()


@contextmanager
def memory(lab: Lab, size: int, cluster: int, spread: int) -> Generator[Sides]:
    """The peak of a fresh interpreter that reads 4 KiB at random; one in `spread` of the places has data."""
    count, places = lab.scale.operations, lab.scale.places // spread
    path = lab.sparse(size, cluster, places)

    def ours() -> Cost:
        peaks: list[float] = []
        arguments = (str(PEAK), str(path), str(count), str(places))
        spent = cost(count, lambda: peaks.append(float(python(*arguments))))
        return Cost(spent.cpu, spent.wall, peaks[0])

    yield {OURS: ours}
    path.unlink()
