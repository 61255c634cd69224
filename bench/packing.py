"""Compressed conversions of a raw disk of real files, by `convert` and by `qemu-img convert`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import pyimago

from .lab import Lab, run
from .measure import OURS, Cost, Sides, cost

Kind = Literal["zlib", "zstd"]


def ours(raw: Path, path: Path, kind: Kind) -> None:
    """Of the library."""
    pyimago.convert(raw, path, source_format="raw", format="qcow2", compress=True, compression_type=kind)


def qemu(raw: Path, path: Path, kind: Kind) -> None:
    """The peer's."""
    how = ("-c", "-W", "-m", "16", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={kind}")
    run("qemu-img", "convert", *how, str(raw), str(path))


@contextmanager
def compressing(lab: Lab, kind: Kind) -> Generator[Sides]:
    """The sides; each writes a new file, whose size counts too."""
    raw = lab.files()

    def side(name: str, convert: Callable[[Path, Path, Kind], None]) -> Cost:
        path = lab.folder / f"{name}.packed"
        spent = cost(1, lambda: convert(raw, path, kind))
        size = path.stat().st_size
        path.unlink()
        return replace(spent, size=size)

    yield {OURS: partial(side, OURS, ours), "qemu-img": partial(side, "qemu-img", qemu)}
