"""The table: what is measured, against what, and the figures to reach."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Literal

from . import chains, checks, converting, packing, processes, reads, snapshots, writes
from .lab import KIB, MIB, Lab
from .measure import Bound, Sides


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    name: str
    work: str
    against: str
    targets: tuple[Bound, ...]
    sides: Callable[[Lab], AbstractContextManager[Sides]]
    rounds: int = 1 << 16
    """At most, where one takes minutes."""

    @property
    def sign(self) -> Literal["≥", "≤"]:
        """Whether it is rates that are compared, to be at least, or times, to be at most."""
        return self.targets[0].sign


PREADV = "`os.preadv` loop on the raw file"
TO_THREAD = "`asyncio.to_thread(os.preadv, ...)`"
QEMU_BENCH = "`qemu-img bench -w`, best of its aio engines"
CONVERT = "`qemu-img convert` to null, fastest of three ways"
TIB = 1 << 40
KINDS: tuple[tuple[packing.Kind, float], ...] = (("zlib", 2), ("zstd", 1.3))

LEAN = (Bound("≥", 1, "CPU"),)
"""No more CPU time than the peer."""

CONVERSIONS: tuple[
    tuple[str, str, float, str, converting.Format, converting.Format, tuple[Bound, ...]], ...
] = (
    ("to-raw", "a qcow2 with 2 GiB of data in 8 GiB to raw", 1.3, "scattered", "qcow2", "raw", LEAN),
    ("to-qcow2", "a raw disk like that to qcow2", 1.3, "spread", "raw", "qcow2", LEAN),
    ("qcow2", "that qcow2 to qcow2", 1.3, "scattered", "qcow2", "qcow2", LEAN),
    ("zlib", "the same compressed with zlib to raw", 2.2, "zlib", "qcow2", "raw", ()),
    ("zstd", "the same compressed with zstd to raw", 1.4, "zstd", "qcow2", "raw", ()),
)
"""Name, work, how much faster at least, the lab's source and its format, the target's, and more bounds."""

LINKS = 256
"""Images of the deep chain: the most that are opened."""

ROWS = (
    Row(
        "sync",
        "random 4 KiB `SyncFormatAccess.read` of a fully allocated qcow2",
        PREADV,
        (Bound("≥", 0.95, "CPU"),),
        partial(reads.synchronous, order=Lab.random, block=4 * KIB),
    ),
    *(
        Row(
            name,
            f"the same, {how}",
            PREADV,
            (Bound("≥", target, "CPU"),),
            partial(reads.awaited, order=Lab.random, block=4 * KIB, way=way),
        )
        for name, how, target, way in (
            ("await-1", "awaited one by one", 0.75, reads.tasks(1)),
            ("await-16", "awaited in 16 tasks", 0.75, reads.tasks(16)),
            ("await-64", "awaited in 64 tasks", 0.75, reads.tasks(64)),
            ("gather", "`gather` of 64", 0.4, reads.gathered),
            ("read-many", "`read_many` of 64", 0.9, reads.many),
        )
    ),
    Row(
        "to-thread",
        "the same, awaited in 16 tasks",
        TO_THREAD,
        (Bound("≥", 10, "CPU"),),
        reads.against_to_thread,
    ),
    Row(
        "aiofiles",
        "the same, awaited in 16 tasks",
        "aiofiles",
        (Bound("≥", 10, "CPU"),),
        reads.against_aiofiles,
    ),
    Row(
        "direct",
        "random 4 KiB with direct I/O, awaited in 32 tasks",
        f"{TO_THREAD}, direct, same file, best of 2 pool sizes",
        (Bound("≥", 3, "CPU"), Bound("≥", 1, "wall")),
        reads.direct,
    ),
    Row(
        "sequential",
        "sequential 1 MiB reads",
        PREADV,
        (Bound("≥", 0.9, "CPU"),),
        partial(reads.synchronous, order=Lab.sequence, block=MIB),
    ),
    Row(
        "sequential-await",
        "the same, awaited one by one",
        PREADV,
        (Bound("≥", 0.9, "CPU"),),
        partial(reads.awaited, order=Lab.sequence, block=MIB, way=reads.tasks(1)),
    ),
    Row(
        "chain",
        f"random 4 KiB reads of a hot chain of {LINKS} overlays",
        "one image",
        (Bound("≥", 0.5, "CPU"),),
        partial(reads.deep, links=LINKS),
    ),
    Row(
        "chain-await",
        "the same, awaited one by one",
        "one image",
        (Bound("≥", 0.5, "CPU"),),
        partial(reads.deep_awaited, links=LINKS),
    ),
    Row(
        "chain-open",
        "opening and closing that chain",
        "`qemu-img info --backing-chain`",
        (Bound("≥", 1, "wall"),),
        partial(reads.opening, links=LINKS),
    ),
    Row(
        "chain-extents",
        "all extents of that chain",
        "`qemu-img map`",
        (Bound("≥", 1, "wall"),),
        partial(reads.mapping, links=LINKS),
    ),
    *(
        Row(
            f"overwrite{suffix}",
            f"random 4 KiB overwrite of an image that is cached in {how}",
            QEMU_BENCH,
            (Bound("≥", 1.5, "CPU"),),
            partial(writes.overwriting, page=page),
        )
        for suffix, how, page in (
            ("", "pages of 4 KiB, as a guest's writes leave it", 4 * KIB),
            ("-large", "large pages, as a conversion leaves it", MIB),
        )
    ),
    Row(
        "overwrite-pwrite",
        "the same",
        "`os.pwrite` loop on a file of the same bytes",
        (Bound("≥", 0.85, "CPU"),),
        writes.overwriting_against_pwrite,
    ),
    Row("allocate", "random 4 KiB allocating write", QEMU_BENCH, (Bound("≥", 3, "CPU"),), writes.allocating),
    *(
        Row(
            f"allocate-{name}{suffix}",
            f"the same, {how}",
            against,
            (Bound("≥", target, "wall"),),
            partial(sides, way=way),
        )
        for name, how, way in (
            ("64", "awaited in 64 tasks", writes.tasks(64)),
            ("many", "`write_many` of 64, awaited", writes.many),
        )
        for suffix, against, target, sides in (
            ("", "the same, awaited one by one", 1, writes.in_flight),
            ("-qemu", QEMU_BENCH, 2, writes.in_flight_against_qemu),
        )
    ),
    *(
        Row(
            kind,
            f"sequential read of a {kind} image",
            CONVERT,
            (Bound("≥", target, "wall"),),
            partial(reads.compressed, kind=kind),
        )
        for kind, target in (("zlib", 1.8), ("zstd", 1.3))
    ),
    Row(
        "luks",
        "sequential read of a qcow2 encrypted with LUKS (aes-256, xts)",
        CONVERT,
        (Bound("≥", 1.5, "wall"),),
        reads.encrypted,
    ),
    *(
        Row(
            f"compress-{kind}",
            f"compressed conversion ({kind}) of a raw disk of real files",
            "`qemu-img convert -c -W -m 16`",
            (Bound("≥", target, "wall"), Bound("≤", 1.02, "size")),
            partial(packing.compressing, kind=kind),
            rounds=3,
        )
        for kind, target in KINDS
    ),
    *(
        Row(
            f"convert-{name}",
            f"conversion of {what}",
            "`qemu-img convert -W -m 16`",
            (Bound("≥", target, "wall"), *more),
            partial(converting.converting, source=source, kind=kind, target=to),
            rounds=3,
        )
        for name, what, target, source, kind, to, more in CONVERSIONS
    ),
    Row(
        "compare",
        "`compare` of a raw disk of 2 GiB with the same as a qcow2",
        "`qemu-img compare`",
        (Bound("≥", 1.5, "wall"),),
        converting.comparing,
        rounds=5,
    ),
    *(
        Row(
            name,
            f"`hash` of {what}",
            "BLAKE3 over the 2 GiB, on all cores",
            (Bound("≥", 1, "wall"),),
            partial(converting.hashing, sparse=sparse),
            rounds=5,
        )
        for name, what, sparse in (
            ("hash", "a raw disk of 2 GiB", False),
            ("hash-sparse", "a qcow2 with 2 GiB of data in 8 GiB", True),
        )
    ),
    *(
        Row(
            f"threads-{name}",
            f"two threads reading one image, random {what}",
            "one thread",
            (Bound("≥", 1.7, "wall"),),
            partial(reads.two_threads, block=block, loop=loop),
        )
        for name, what, block, loop in (
            ("4KiB", "4 KiB", 4 * KIB, reads.read_loop),
            ("many", "4 KiB, `read_many` of 64", 4 * KIB, reads.batch_loop),
            ("64KiB", "64 KiB", 64 * KIB, reads.read_loop),
            ("1MiB", "1 MiB", MIB, reads.read_loop),
        )
    ),
    *(
        Row(
            f"threads-{what.replace(' ', '')}-preadv",
            f"the same, random {what}",
            "two threads, `os.preadv` loops on the raw file",
            (Bound("≥", 0.9, "wall"),),
            partial(reads.two_threads_against_preadv, block=block),
        )
        for what, block in (("64 KiB", 64 * KIB), ("1 MiB", MIB))
    ),
    Row(
        "check",
        "`check` of a qcow2 with 1 TiB allocated (tables only)",
        "`qemu-img check`",
        (Bound("≥", 3, "wall"),),
        checks.checking,
    ),
    Row(
        "check-memory",
        "memory of the same, above that of `qemu-img check`",
        "-",
        (Bound("≤", 0, "MiB"),),
        checks.memory,
    ),
    Row(
        "snapshot-delete",
        "deleting one of 50 snapshots of a 256 GiB qcow2 (tables only)",
        "`qemu-img snapshot -d`",
        (Bound("≥", 1, "wall"),),
        partial(snapshots.deleting, count=50),
    ),
    Row(
        "commit",
        "`commit` of 1 GiB of changes into a full image, which are kept",
        "`qemu-img commit -d`, best of 2 cache modes",
        (Bound("≥", 1.3, "wall"),),
        chains.committing,
    ),
    Row(
        "rebase",
        "safe `rebase` of the same: 1 GiB moves up",
        "`qemu-img rebase`, best of 2 cache modes",
        (Bound("≥", 1.3, "wall"),),
        chains.rebasing,
    ),
    *(
        Row(
            f"scattered-{verb}",
            f"{work} of a 64 TiB qcow2 with 100,000 scattered clusters",
            f"`qemu-img {' '.join((verb, *arguments))}`",
            (Bound("≥", 3, "wall"),),
            partial(chains.looking, verb=verb, arguments=arguments, ours=ours),
            rounds=3,
        )
        for verb, work, arguments, ours in (
            ("map", "all extents, as dictionaries,", ("-f", "qcow2", "--output=json"), chains.mapped),
            ("measure", "`measure`", ("-f", "qcow2", "-O", "qcow2"), chains.measured),
            ("info", "`info`", ("-f", "qcow2", "--output=json"), chains.told),
        )
    ),
    Row("import", "`import pyimago`", "`import asyncio`", (Bound("≤", 1.5, "wall"),), processes.imports),
    *(
        Row(
            name,
            f"start of `pyimago {' '.join(arguments)}`, above that of `python -c pass`",
            "-",
            (Bound("≤", 60, "ms"),),
            partial(processes.start, arguments=arguments),
        )
        for name, arguments in (("start-help", ("--help",)), ("start-info", ("info", "IMAGE")))
    ),
    *(
        Row(
            name,
            f"memory of reading {what} at random",
            "-",
            (Bound("≤", 100, "MiB"),),
            partial(processes.memory, size=size, cluster=cluster, spread=spread),
        )
        for name, what, size, cluster, spread in (
            ("memory-1PiB", "a sparse 1 PiB image", 1024 * TIB, 64 * KIB, 1),
            ("memory-2MiB", "an image of 2 MiB clusters (128 TiB)", 128 * TIB, 2 * MIB, 16),
        )
    ),
)
