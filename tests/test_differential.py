"""The wheel against QEMU: `extents` as `qemu-img map`, contents as `qemu-img convert`, both ways."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest
from tests.conftest import Qemu, pattern

if TYPE_CHECKING:
    from pathlib import Path

    from tests.face import Face

    import pyimago

OPTIONS = [
    "cluster_size=64k",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=2M",
    "extended_l2=on",
    "compression_type=zstd",
    "refcount_bits=1",
]


@pytest.fixture(params=OPTIONS)
def path(request: pytest.FixtureRequest, tmp_path: Path, qemu: Qemu) -> Path:
    """An overlay that QEMU wrote, with every kind of cluster, over a shorter raw file."""
    (tmp_path / "base.raw").write_bytes(pattern(1, 3_000_000))
    image = tmp_path / "image.qcow2"
    options = f"{request.param},backing_file=base.raw,backing_fmt=raw"
    qemu.img("create", "-q", "-f", "qcow2", "-o", options, image, "6M")
    qemu.io(image, "write -P 1 300k 500k", "write -c -P 2 2M 2M", "write -z 1M 128k", "write -P 3 5000k 5k")
    # Without the holes that clusters written in part have: QEMU's map looks below the format, too.
    image.write_bytes(image.read_bytes())
    return image


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def test_content_is_what_qemu_reads(face: Face, path: Path, qemu: Qemu) -> None:
    async with face.open(path) as image:
        assert sha256(await image.content()) == sha256(qemu.content(path))


async def test_qemu_reads_what_is_written(face: Face, path: Path, qemu: Qemu) -> None:
    wanted = bytearray(qemu.content(path))
    writes = [
        (pattern(7, 5000), 100),
        (pattern(8, 200_000), 310_000),
        (b"z" * 513, 2_100_000),
        (b"end", len(wanted) - 3),
    ]
    for data, offset in writes:
        wanted[offset : offset + len(data)] = data
    wanted[700_000:800_000] = bytes(100_000)
    async with face.open(path, write=True) as image:
        await image.write_many(writes)
        await image.write_zeroes(700_000, 100_000)
        assert sha256(await image.content()) == sha256(bytes(wanted))
    qemu.assert_clean(path)
    assert sha256(qemu.content(path)) == sha256(bytes(wanted))


def flatten(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """The rows with neighbours of the same facts joined: who maps may cut where it likes."""
    joined: list[dict[str, object]] = []
    for row in rows:
        last = joined[-1] if joined else None
        if last is not None and _continues(last, row):
            last["length"] = _number(last, "length") + _number(row, "length")
        else:
            joined.append(dict(row))
    return joined


def _number(row: dict[str, object], key: str) -> int:
    value = row[key]
    assert isinstance(value, int)
    return value


def _continues(last: dict[str, object], row: dict[str, object]) -> bool:
    facts = ("depth", "present", "zero", "data", "compressed")
    if any(last.get(key) != row.get(key) for key in facts) or ("offset" in last) != ("offset" in row):
        return False
    return "offset" not in row or _number(last, "offset") + _number(last, "length") == _number(row, "offset")


def as_map(extent: pyimago.Extent) -> dict[str, object]:
    row: dict[str, object] = {
        "start": extent.offset,
        "length": extent.length,
        "depth": extent.depth,
        "present": extent.allocated,
        "zero": extent.zero,
        "data": extent.data,
        "compressed": extent.compressed,
    }
    if extent.host_offset is not None:
        row["offset"] = extent.host_offset
    return row


async def test_extents_are_what_qemu_img_map_says(face: Face, path: Path, qemu: Qemu) -> None:
    wanted = json.loads(qemu.img("map", "--output=json", path))
    async with face.open(path) as image:
        found = [as_map(extent) for extent in await image.extents()]
    assert flatten(found) == flatten(wanted)
