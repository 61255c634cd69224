"""The images that the works read and write, made on first use, and how big everything is."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyimago

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
CLUSTER = 64 * KIB
SECRET = "open sesame"
QEMU_SECRET = ("--object", f"secret,id=s,data={SECRET}")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured: size in bytes; operations at most, rounds and seconds of a row at least."""

    size: int
    operations: int
    rounds: int
    seconds: float
    places: int
    """How many places of a sparse image hold data."""


FULL = Scale(size=GIB, operations=1 << 16, rounds=7, seconds=10, places=2048)
QUICK = Scale(size=32 * MIB, operations=1 << 11, rounds=3, seconds=0, places=32)


def run(*command: str, stdin: str | None = None) -> str:
    """The output of a program; it must succeed."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def python(*arguments: str) -> str:
    """The output of a fresh interpreter; it imports the library that is measured, which `-I` might not."""
    return run(sys.executable, "-s", "-P", *arguments)


def settle(path: Path) -> None:
    """Has the page cache hold the file as reading it from the device leaves it, however it was written.

    The size of its pages there is a tenth of what a small read costs.
    """
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(MIB):
            pass


def stride(count: int, units: int) -> Sequence[int]:
    """Unit numbers, 0.618 of the disk from one to the next: all over it, none twice before each was once."""
    step = stride_step(units)
    return [i * step % units for i in range(count)]


def stride_step(units: int) -> int:
    """That step, odd: it meets every one of `units` (a power of two)."""
    return int(units * 0.618) | 1


@dataclass(frozen=True, slots=True)
class Lab:
    """A folder of images, removed by its owner."""

    folder: Path
    scale: Scale
    loop: Callable[[], asyncio.AbstractEventLoop]

    def sequence(self, block: int) -> Sequence[int]:
        """Block after block, the whole disk."""
        return range(0, self.scale.size, block)

    def random(self, block: int) -> Sequence[int]:
        """Aligned blocks at random, the same in every run: as the scale says, one disk's worth at most."""
        blocks = self.scale.size // block
        count = min(self.scale.operations, blocks)
        return [n * block for n in random.Random(block).choices(range(blocks), k=count)]

    def raw(self) -> Path:
        """Text of random words, which compresses as text does; no block of it is zero."""
        path = self.folder / "disk.raw"
        if not path.exists():
            letters = random.Random(1)
            words = ["".join(letters.choices("etaoinshrdlu", k=letters.randint(2, 9))) for _ in range(4096)]
            text = " ".join(letters.choices(words, k=2 * MIB)).encode()[: 8 * MIB]
            with path.open("wb") as file:
                for _ in range(self.scale.size // len(text)):
                    file.write(text)
            settle(path)
        return path

    def files(self) -> Path:
        """The files of Python's library, one behind the other, twice as much as the scale says."""
        path = self.folder / "files.raw"
        if not path.exists():
            library = Path(sysconfig.get_path("stdlib"))
            found = sorted(file for file in library.rglob("*") if file.is_file())
            apart = ("site-packages", "__pycache__")
            files = [file for file in found if not set(apart) & set(file.parts)]
            left = 2 * self.scale.size
            with path.open("wb") as disk:
                for file in itertools.cycle(files):
                    left -= disk.write(file.read_bytes()[:left])
                    if not left:
                        break
            settle(path)
        return path

    def files_as_qcow2(self) -> Path:
        """The same as a qcow2."""
        return self._converted("files.qcow2", source=self.files())

    def spread(self) -> Path:
        """The same bytes in a sparse raw disk four times as large, in runs of 32 MiB."""
        path = self.folder / "spread.raw"
        if not path.exists():
            files, run = self.files(), min(32 * MIB, self.scale.size // 4)
            with files.open("rb") as data, path.open("wb") as disk:
                disk.truncate(4 * files.stat().st_size)
                while part := data.read(run):
                    disk.write(part)
                    disk.seek(3 * run, os.SEEK_CUR)
            settle(path)
        return path

    def scattered(self) -> Path:
        """That disk as a qcow2."""
        return self._converted("spread.qcow2", source=self.spread())

    def packed(self, kind: str) -> Path:
        """That disk as a qcow2 of compressed clusters, `zlib` or `zstd`."""
        layout = ("-c", "-o", f"compression_type={kind}")
        return self._converted(f"spread-{kind}.qcow2", *layout, source=self.spread())

    def full(self) -> Path:
        """The same disk as a qcow2, fully allocated."""
        return self._converted("full.qcow2")

    def compressed(self, kind: str) -> Path:
        """The same disk as a qcow2 of compressed clusters, `zlib` or `zstd`."""
        return self._converted(f"{kind}.qcow2", "-c", "-o", f"compression_type={kind}")

    def encrypted(self) -> Path:
        """The same disk as a qcow2 encrypted with LUKS: aes-256, xts, plain64."""
        layout = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
        return self._converted("encrypted.qcow2", *QEMU_SECRET, "-o", layout)

    def _converted(self, name: str, *options: str, source: Path | None = None) -> Path:
        path = self.folder / name
        if not path.exists():
            how = ("-W", "-m", "16", "-f", "raw", "-O", "qcow2", *options)
            run("qemu-img", "convert", *how, str(source or self.raw()), str(path))
            settle(path)
        return path

    def empty(self, name: str) -> Path:
        """A new image of the same size with no cluster allocated."""
        path = self.folder / f"{name}.qcow2"
        path.unlink(missing_ok=True)
        run("qemu-img", "create", "-q", "-f", "qcow2", str(path), str(self.scale.size))
        return path

    def sparse(self, size: int, cluster: int, places: int) -> Path:
        """An image with 4 KiB of data at evenly spread places, each with an L2 table of its own."""
        path = self.folder / f"sparse-{cluster}.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", str(path), str(size))
        writes = "".join(f"write -q {n * (size // places)} 4k\n" for n in range(places))
        run("qemu-io", "-f", "qcow2", "-t", "unsafe", str(path), stdin=writes)
        return path

    def chain(self, links: int) -> Path:
        """The top of a chain of so many images; the clusters of the disk are spread over them evenly."""
        folder = self.folder / f"chain-{links}"
        if not folder.exists():
            folder.mkdir()
            clusters = list(range(self.scale.size // CLUSTER))
            random.Random(links).shuffle(clusters)
            data = self.raw().open("rb").read(CLUSTER)
            for link in range(links):
                path, below = folder / f"{link}.qcow2", f"{link - 1}.qcow2" if link else None
                pyimago.create(
                    path,
                    self.scale.size,
                    format="qcow2",
                    backing=below,
                    backing_format="qcow2" if link else None,
                )
                with pyimago.open(path, write=True, format="qcow2", backing=None) as image:
                    image.write_many([(data, cluster * CLUSTER) for cluster in sorted(clusters[link::links])])
                settle(path)
        return folder / f"{links - 1}.qcow2"

    def tables(self) -> Path:
        """The tables of a disk a thousand times as large, every cluster allocated, in a sparse file."""
        path = self.folder / "tables.qcow2"
        if not path.exists():
            size = str(self.scale.size * KIB)
            run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", str(path), size)
        return path

    def snapshots(self, count: int) -> Path:
        """The tables of a disk 256 times as large, all its clusters in each of `count` snapshots."""
        path = self.folder / f"snapshots-{count}.qcow2"
        if not path.exists():
            size = str(self.scale.size * 256)
            run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", str(path), size)
            with pyimago.open(path, write=True, format="qcow2") as image:
                for n in range(count):
                    image.snapshots.create(f"snapshot-{n}")
        return path

    @contextmanager
    def awaited(
        self, path: Path, *, direct: bool = False
    ) -> Generator[tuple[asyncio.Runner, pyimago.FormatAccess]]:
        """A loop, and the image opened on it."""

        async def opened() -> pyimago.FormatAccess:
            storage = await pyimago.File.open(pyimago.StorageOpenOptions(filename=str(path), direct=direct))
            return pyimago.FormatAccess(await pyimago.Qcow2.open_image(storage, write=False))

        async def closed() -> None:
            await image.close()

        with asyncio.Runner(loop_factory=self.loop) as runner:
            image = runner.run(opened())
            try:
                yield runner, image
            finally:
                runner.run(closed())
