"""`check` against `qemu-img check`, of an image whose tables say that 1 TiB is allocated."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pyimago

from .lab import CLUSTER, Lab, python, run
from .measure import OURS, Cost, Sides, cost

PEAK = Path(__file__).with_name("check_peak.py")


@contextmanager
def checking(lab: Lab) -> Generator[Sides]:
    """Every cluster has an entry, a refcount and its place in a sparse file."""
    path = lab.tables()
    clusters = path.stat().st_size // CLUSTER

    def ours() -> None:
        if not pyimago.check(path, format="qcow2").clean:
            raise RuntimeError(f"{path} is not clean")

    yield {
        OURS: lambda: cost(clusters, ours),
        "qemu-img": lambda: cost(clusters, lambda: run("qemu-img", "check", "-q", "-f", "qcow2", str(path))),
    }


@contextmanager
def memory(lab: Lab) -> Generator[Sides]:
    """The peak of a fresh interpreter that checks it, above that of `qemu-img check`."""
    path = lab.tables()

    def above() -> Cost:
        peaks = [float(python(str(PEAK), who, str(path))) for who in (OURS, "qemu-img")]
        return Cost(0, 0, peaks[0] - peaks[1])

    yield {OURS: above}
