"""How long stopping takes: from the request until the operation is really over, in milliseconds.

Each long operation is stopped in the middle of its work, at several points of it: its task is cancelled, and
the command gets SIGINT. It is over when nobody holds its images any more and nothing of a new one is left;
the command, when its process has ended. Images are made in $TMPDIR (some 20 GiB) and removed at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyimago
import pyimago.aio as aio
from pyimago._types import Format, Preallocation

from . import chains
from .lab import FULL, QUICK, Lab

LIMIT = 100
"""Milliseconds that stopping may take."""
POINTS = (0.1, 0.4, 0.7, 0.95, 1.0)
"""How much is done when it is stopped; at 1 all but what makes it durable."""
LOCKS = (100, 200)
"""The bytes of an image file that its users lock."""
POLL = 0.0005
PATIENCE = 60
"""Seconds."""

TIB = 1 << 40

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Work:
    """A long operation."""

    name: str
    call: Callable[[Progress], Awaitable[object]]
    words: Sequence[str | Path]
    """The same for the command."""
    files: Sequence[Path]
    """Those that it holds meanwhile."""
    prepare: Callable[[], object] = lambda: None
    """Makes them what they have to be."""


def works(lab: Lab) -> list[Work]:
    """All of them."""
    folder, size = lab.folder, lab.scale.size
    raw, qcow2, full = lab.spread(), lab.scattered(), lab.full()
    files, same, tables, wide = lab.files(), lab.files_as_qcow2(), lab.tables(), chains.scattered(lab)
    changed = chains.changed(lab, "changed.qcow2", full)
    base = folder / "base.qcow2"
    if not base.exists():
        shutil.copyfile(full, base)
    top = chains.changed(lab, "to-commit.qcow2", base)
    out = folder / "out"

    def convert(name: str, source: Path, kind: Format, to: Format, how: str = "") -> Work:
        packed: dict[str, Any] = {"compress": True, "compression_type": how} if how else {}
        words = ("-c", "-o", f"compression_type={how}") if how else ()
        return Work(
            f"`convert` {name}",
            lambda progress: aio.convert(
                source, out, source_format=kind, format=to, progress=progress, **packed
            ),
            ("convert", "-f", kind, "-O", to, *words, source, out),
            (source,),
        )

    def create(name: str, kind: Format, how: Preallocation, size: int) -> Work:
        return Work(
            f"`create` {name}",
            lambda progress: aio.create(
                out, size, format=kind, overwrite=True, preallocation=how, progress=progress
            ),
            ("create", "-f", kind, "-o", f"preallocation={how}", out, str(size)),
            (),
        )

    def resize(name: str, kind: Format, how: Preallocation) -> Work:
        image = folder / f"grown.{kind}"
        return Work(
            f"`resize` {name}",
            lambda progress: aio.resize(image, 5 * size, format=kind, preallocation=how, progress=progress),
            ("resize", "-f", kind, f"--preallocation={how}", image, str(5 * size)),
            (image,),
            lambda: pyimago.create(image, size, format=kind, overwrite=True),
        )

    rebased, shrunk = folder / "rebased.qcow2", folder / "shrunk.qcow2"
    return [
        convert("raw to qcow2", raw, "raw", "qcow2"),
        convert("qcow2 to raw", qcow2, "qcow2", "raw"),
        convert("qcow2 to qcow2, zlib", qcow2, "qcow2", "qcow2", "zlib"),
        convert("qcow2 to qcow2, zstd", qcow2, "qcow2", "qcow2", "zstd"),
        convert("zlib to raw", lab.packed("zlib"), "qcow2", "raw"),
        Work(
            "`commit`",
            lambda progress: aio.commit(top, format="qcow2", keep=True, progress=progress),
            ("commit", "-d", "-f", "qcow2", top),
            (top, base),
        ),
        Work(
            "`rebase`",
            lambda progress: aio.rebase(
                rebased, full.name, backing_format="qcow2", format="qcow2", progress=progress
            ),
            ("rebase", "-f", "qcow2", "-F", "qcow2", "-b", full.name, rebased),
            (rebased, changed, full),
            lambda: chains.over(lab, rebased.name, changed),
        ),
        Work(
            "`check`, 1 TiB of tables",
            lambda progress: aio.check(tables, format="qcow2", progress=progress),
            ("check", "-f", "qcow2", tables),
            (tables,),
        ),
        Work(
            "`check --deep`, zlib",
            lambda progress: aio.check(lab.packed("zlib"), format="qcow2", deep=True, progress=progress),
            ("check", "--deep", "-f", "qcow2", lab.packed("zlib")),
            (lab.packed("zlib"),),
        ),
        Work(
            "`compare` raw with qcow2",
            lambda progress: aio.compare(
                files, same, first_format="raw", second_format="qcow2", progress=progress
            ),
            ("compare", "-f", "raw", "-F", "qcow2", files, same),
            (files, same),
        ),
        Work(
            "`hash`",
            lambda progress: aio.hash(files, format="raw", progress=progress),
            ("hash", "-f", "raw", files),
            (files,),
        ),
        Work(
            "`measure`, 64 TiB with 100,000 clusters",
            lambda progress: aio.measure(wide, source_format="qcow2", format="qcow2", progress=progress),
            ("measure", "-f", "qcow2", "-O", "qcow2", wide),
            (wide,),
        ),
        Work(
            "`map`, the same",
            lambda progress: aio.map(wide, format="qcow2", progress=progress),
            ("map", "--output=json", "-f", "qcow2", wide),
            (wide,),
        ),
        Work(
            "`amend`, 1 TiB of tables to 64-bit refcounts",
            lambda progress: aio.amend(tables, format="qcow2", refcount_bits=64, progress=progress),
            ("amend", "-f", "qcow2", "-o", "refcount_bits=64", tables),
            (tables,),
            lambda: pyimago.amend(tables, format="qcow2", refcount_bits=16),
        ),
        create("raw, full", "raw", "full", 4 * size),
        create("qcow2, full", "qcow2", "full", 4 * size),
        create("raw, falloc", "raw", "falloc", 16 * size),
        create("qcow2, metadata of 8 TiB", "qcow2", "metadata", 8 * TIB),
        resize("raw, full", "raw", "full"),
        resize("qcow2, full", "qcow2", "full"),
        resize("qcow2, metadata", "qcow2", "metadata"),
        Work(
            "`resize` from 1 TiB of tables to a half",
            lambda progress: aio.resize(shrunk, size << 9, format="qcow2", shrink=True, progress=progress),
            ("resize", "-f", "qcow2", "--shrink", shrunk, str(size << 9)),
            (shrunk,),
            lambda: subprocess.run(["cp", "--sparse=always", tables, shrunk], check=True),
        ),
        Work(
            "`bench -w`",
            lambda progress: aio.bench(base, format="qcow2", write=True, count=1 << 20, progress=progress),
            ("bench", "-w", "-f", "qcow2", "-c", str(1 << 20), base),
            (base,),
        ),
    ]


def held(path: Path) -> bool:
    """Whether somebody has the image in the file open."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        for start in LOCKS:
            wish = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, 100, 0)
            found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wish)
            if struct.unpack("hhqqi4x", found)[0] != fcntl.F_UNLCK:
                return True
    finally:
        os.close(descriptor)
    return False


def over(work: Work, folder: Path) -> bool:
    """Whether nothing holds the work's images any more, and nothing of a new one is left."""
    return not any(held(path) for path in work.files) and not list(folder.glob(".*.partial"))


def nap() -> None:
    """Any moment of what comes next will do."""
    time.sleep(random.uniform(0, 0.03))


async def cancelled(work: Work, point: float, folder: Path) -> float | None:
    """Milliseconds from the cancelling of the task to the end; None where it had come to its own."""
    begun, loop = asyncio.Event(), asyncio.get_running_loop()

    def progress(done: int, total: int) -> None:
        if total and done >= point * total:
            loop.call_soon_threadsafe(begun.set)

    async def run() -> None:
        await work.call(progress)

    task, waiting = asyncio.create_task(run()), asyncio.create_task(begun.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.to_thread(nap)
    waiting.cancel()
    start = time.perf_counter()
    if not task.cancel():
        task.result()
        return None
    with contextlib.suppress(asyncio.CancelledError):
        await task
    while not over(work, folder):
        if time.perf_counter() > start + PATIENCE:
            raise RuntimeError(f"{work.name} does not end")
        await asyncio.sleep(POLL)
    return 1000 * (time.perf_counter() - start)


def interrupted(work: Work, point: float) -> float | None:
    """Milliseconds from SIGINT to the command's end; None where it had come to its own."""
    command = [sys.executable, "-m", "pyimago.cli", work.words[0], "--progress=json", *work.words[1:]]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if not line.startswith("{"):
                raise RuntimeError(line)
            told = json.loads(line)
            if told["total"] and told["done"] >= point * told["total"]:
                break
        nap()
        if process.poll() is not None:
            return None
        start = time.perf_counter()
        process.send_signal(signal.SIGINT)
        process.wait()
        took = 1000 * (time.perf_counter() - start)
    return took if process.returncode == -signal.SIGINT else None


def tried(one: Callable[[Work, float], float | None], work: Work, folder: Path, rounds: int) -> list[float]:
    """What each try took that was in time."""
    took: list[float] = []
    for _ in range(rounds):
        for point in POINTS:
            work.prepare()
            before = set(folder.iterdir())
            found = one(work, point)
            if found is not None:
                took.append(found)
                if os.environ.get("STOPPING_VERBOSE"):
                    print(f"    {work.name} {point}: {found:.0f}", file=sys.stderr)
            for path in set(folder.iterdir()) - before:
                path.unlink()
    return took


def cell(took: list[float]) -> str:
    """The worst, marked where it is too long."""
    if not took:
        return "done before"
    worst = f"{max(took):.0f} ms"
    return worst if max(took) <= LIMIT else f"**{worst}** (miss)"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.stopping", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny images: does it run, not how fast")
    parser.add_argument("--only", metavar="TEXT", help="the operations with this in their name")
    parser.add_argument("--rounds", type=int, default=2, help=f"tries at each of {len(POINTS)} points (2)")
    parser.add_argument("--folder", type=Path, help="where the images are, or are made to stay")
    options = parser.parse_args()
    temporary = tempfile.TemporaryDirectory(prefix="pyimago-bench-")
    with contextlib.nullcontext(options.folder) if options.folder else temporary as name:
        folder = Path(name)
        lab = Lab(folder, QUICK if options.quick else FULL, asyncio.new_event_loop)
        print("| operation | task cancelled | SIGINT to the command | tries |", "|---|---|---|---|", sep="\n")
        for work in works(lab):
            if options.only and options.only not in work.name:
                continue
            by_task = tried(
                lambda work, point: asyncio.run(cancelled(work, point, folder)), work, folder, options.rounds
            )
            by_signal = tried(interrupted, work, folder, options.rounds)
            tries = len(by_task) + len(by_signal)
            print(f"| {work.name} | {cell(by_task)} | {cell(by_signal)} | {tries} |", flush=True)


if __name__ == "__main__":
    main()
