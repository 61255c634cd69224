"""What an operation costs, and the sides of a comparison run in interleaved rounds."""

from __future__ import annotations

import gc
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal, TypeAlias

OURS = "pyimago"

Figure: TypeAlias = Literal["CPU", "wall", "MiB", "ms", "size"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one operation: CPU time (user and system, of all threads and ended children), wall time."""

    cpu: float
    wall: float
    peak: float = 0.0
    """MiB of memory at the most, where a process of its own did the work."""
    size: int = 0
    """Bytes of the file that was written, where they count."""
    late: float = 0.0
    """Milliseconds more than something else takes, where that is what counts."""

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.cpu - other.cpu, self.wall - other.wall, self.peak)

    def __truediv__(self, operations: int) -> Cost:
        return Cost(self.cpu / operations, self.wall / operations, self.peak)


Side: TypeAlias = Callable[[], Cost]
"""One side of a comparison: does its work once and says what an operation of it cost."""

Sides: TypeAlias = Mapping[str, Side]
"""`OURS` and its peers, in the order of a round."""

Round: TypeAlias = Mapping[str, Cost]


def now() -> Cost:
    """The clocks of this process and its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Cost(sum(usage.ru_utime + usage.ru_stime for usage in usages), time.perf_counter())


def have_memory(folder: Path, size: int) -> None:
    """Have the page cache take so many bytes of memory, and give them back to the system.

    A virtual machine's host may have taken free memory away: it gives it back now, not to who needs it first.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        piece = bytes(1 << 20)
        for _ in range(0, size, len(piece)):
            file.write(piece)


def cost(operations: int, work: Callable[[], object]) -> Cost:
    """What each of the operations cost that `work` does in one call."""
    gc.collect()
    start = now()
    work()
    return (now() - start) / operations


def interleave(sides: Sides, *, seconds: float, rounds: int) -> list[Round]:
    """Every side in turn (A B A B ...), `rounds` times and on for `seconds`; one round before warms up."""
    for side in sides.values():
        side()
    done: list[Round] = []
    end = time.perf_counter() + seconds
    while len(done) < rounds or time.perf_counter() < end:
        done.append({name: side() for name, side in sides.items()})
    return done


@dataclass(frozen=True, slots=True)
class Bound:
    """A figure to reach: at least a ratio of rates, at most a ratio of times or sizes or a peak of memory."""

    sign: Literal["≥", "≤"]
    value: float
    figure: Figure

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g} {self.figure}"

    def holds(self, reached: float) -> bool:
        """Whether `reached` is on the right side."""
        return reached >= self.value if self.sign == "≥" else reached <= self.value


def ratios(done: list[Round], sign: Literal["≥", "≤"]) -> dict[Figure, dict[str, float]]:
    """The median of the rounds' ratios, ours over each peer's: of rates for `≥`, of times for `≤`."""

    def ratio(ours: float, peer: float) -> float:
        return peer / ours if sign == "≥" else ours / peer

    peers = [name for name in done[0] if name != OURS]
    return {
        "CPU": {name: median(ratio(r[OURS].cpu, r[name].cpu) for r in done) for name in peers},
        "wall": {name: median(ratio(r[OURS].wall, r[name].wall) for r in done) for name in peers},
    }


def reached(done: list[Round], sign: Literal["≥", "≤"]) -> dict[Figure, float]:
    """The figures against the strongest peer in each; with no peer, the median peak of memory or delay."""
    if set(done[0]) == {OURS}:
        if late := median(r[OURS].late for r in done):
            return {"ms": late}
        return {"MiB": median(r[OURS].peak for r in done)}
    strongest = min if sign == "≥" else max
    figures: dict[Figure, float] = {
        figure: strongest(against.values()) for figure, against in ratios(done, sign).items()
    }
    sizes = {name: median(r[name].size for r in done) for name in done[0]}
    if sizes[OURS]:
        figures["size"] = sizes[OURS] / min(size for name, size in sizes.items() if name != OURS)
    return figures
