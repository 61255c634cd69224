"""Conversions, comparisons and hashes of whole images beside `qemu-img` and the hash function itself."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import pyimago

from .lab import Lab, run
from .measure import OURS, Cost, Sides, cost, have_memory

Format: TypeAlias = Literal["raw", "qcow2"]
FASTEST = ("-W", "-m", "16")
"""What lets qemu-img write in any order, with as many requests at a time as it takes."""


def written(lab: Lab, path: Path, work: Callable[[], object]) -> Cost:
    """What a conversion to `path` costs, whose target is removed."""
    have_memory(lab.folder, 3 * lab.scale.size)
    spent = cost(1, work)
    path.unlink()
    return spent


@contextmanager
def converting(lab: Lab, source: str, kind: Format, target: Format) -> Generator[Sides]:
    """One of the lab's images into a new one; neither side waits for the device, as is qemu-img's default."""
    path: Path = getattr(lab, source)() if source in {"spread", "scattered"} else lab.packed(source)
    ours, theirs = lab.folder / "ours.out", lab.folder / "theirs.out"
    convert = partial(pyimago.convert, path, ours, source_format=kind, format=target, durable=False)
    qemu = partial(run, "qemu-img", "convert", *FASTEST, "-f", kind, "-O", target, str(path), str(theirs))
    yield {OURS: partial(written, lab, ours, convert), "qemu-img": partial(written, lab, theirs, qemu)}


@contextmanager
def comparing(lab: Lab) -> Generator[Sides]:
    """A raw disk and the same as a qcow2."""
    raw, qcow2 = lab.files(), lab.files_as_qcow2()
    ours = partial(pyimago.compare, raw, qcow2, first_format="raw", second_format="qcow2")
    qemu = partial(run, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(raw), str(qcow2))
    yield {OURS: partial(cost, 1, ours), "qemu-img": partial(cost, 1, qemu)}


@contextmanager
def hashing(lab: Lab, sparse: bool) -> Generator[Sides]:  # noqa: FBT001 - a row says it by name
    """`hash` against BLAKE3 itself over the bytes of the data, on all cores, from a memory map."""
    from blake3 import blake3

    data = lab.files()
    path = lab.scattered() if sparse else data
    kind: Format = "qcow2" if sparse else "raw"

    def function() -> None:
        blake3(max_threads=blake3.AUTO).update_mmap(data).digest()

    ours = partial(pyimago.hash, path, format=kind)
    yield {OURS: partial(cost, 1, ours), "blake3": partial(cost, 1, function)}
