"""Persistent dirty bitmaps, synchronous and awaited."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest

import pyimago

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Qemu
    from tests.face import Face

SIZE = 8 << 20
GRANULE = 1 << 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    pyimago.create(tmp_path / "image.qcow2", SIZE, format="qcow2")
    return tmp_path / "image.qcow2"


async def test_an_enabled_bitmap_records_what_is_written(face: Face, path: Path) -> None:
    async with face.open(path, write=True) as image:
        await image.bitmaps.add("day")
        await image.bitmaps.add("fine", granularity=512, enabled=False)
        await image.write(b"x" * 5000, 3 * GRANULE - 100)
        await image.write_zeroes(1 << 20, 10)
        await image.discard(2 << 20, GRANULE)
        dirty = [(2 * GRANULE, 2 * GRANULE), (1 << 20, GRANULE), (2 << 20, GRANULE)]
        assert await image.bitmaps.ranges("day") == dirty
        assert await image.bitmaps.ranges("fine") == []
        day, fine = await image.bitmaps.list()
        assert (day.name, day.granularity, day.flags, day.count) == ("day", GRANULE, ["auto"], 4 * GRANULE)
        assert (fine.name, fine.granularity, fine.flags, fine.count) == ("fine", 512, [], 0)
        assert repr(fine) == "Bitmap(name='fine', granularity=512, flags=[], count=0)"
    async with face.open(path) as image:
        assert await image.bitmaps.ranges("day") == dirty
        assert await image.bitmaps.list() == [day, fine]
        assert len({*await image.bitmaps.list(), day, fine}) == 2


async def test_bitmaps_are_changed(face: Face, path: Path) -> None:
    async with face.open(path, write=True) as image:
        bitmaps = image.bitmaps
        await bitmaps.add("a")
        await bitmaps.add("b", enabled=False)
        await image.write(b"1", 0)
        await bitmaps.disable("a")
        await bitmaps.enable("b")
        await image.write(b"2", GRANULE * 4)
        assert await bitmaps.ranges("a") == [(0, GRANULE)]
        assert await bitmaps.ranges("b") == [(4 * GRANULE, GRANULE)]
        await bitmaps.merge("a", "b")
        await bitmaps.clear("b")
        assert await bitmaps.ranges("a") == [(0, GRANULE), (4 * GRANULE, GRANULE)]
        assert await bitmaps.ranges("b") == []
        await bitmaps.remove("b")
    assert [bitmap["name"] for bitmap in _in_info(path)] == ["a"]
    assert _in_info(path)[0]["flags"] == []


def _in_info(path: Path) -> list[dict[str, object]]:
    specific = pyimago.info(path).to_dict()["format-specific"]["data"]
    found: list[dict[str, object]] = specific.get("bitmaps", [])
    return found


async def test_bitmaps_are_merged_across_images(face: Face, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.qcow2"
    pyimago.create(other, SIZE, format="qcow2", cluster_size=4096)
    async with face.open(path, write=True) as image, face.open(other, write=True) as source:
        await image.bitmaps.add("all")
        await source.bitmaps.add("some")
        await source.write(b"x", 5 * GRANULE + 5000)
        assert await source.bitmaps.ranges("some") == [(5 * GRANULE + 4096, 4096)]
        await image.bitmaps.merge("all", "some", source)
        assert await image.bitmaps.ranges("all") == [(5 * GRANULE, GRANULE)]


async def test_what_cannot_be_is_refused(face: Face, path: Path, tmp_path: Path) -> None:
    async with face.open(path, write=True) as image:
        bitmaps = image.bitmaps
        await bitmaps.add("there")
        for name in ("there", "", "x" * 1024):
            with pytest.raises(ValueError, match="can be made"):
                await bitmaps.add(name)
        for granularity in (0, 256, 1000, 1 << 32, -1):
            with pytest.raises(ValueError, match=r"power of two|out of range"):
                await bitmaps.add("a", granularity=granularity)
        with pytest.raises(ValueError, match='no bitmap "missing"'):
            await bitmaps.ranges("missing")
        with pytest.raises(ValueError, match="no bitmap"):
            await bitmaps.remove("missing")
    async with face.open(path) as image:
        with pytest.raises(io.UnsupportedOperation):
            await image.bitmaps.remove("there")
    with pytest.raises(pyimago.ImageClosedError):
        await image.bitmaps.list()
    (tmp_path / "disk.raw").write_bytes(bytes(4096))
    async with face.open(tmp_path / "disk.raw", format="raw", write=True) as image:
        with pytest.raises(pyimago.UnsupportedFeatureError, match="raw"):
            await image.bitmaps.list()
    pyimago.create(tmp_path / "old.qcow2", SIZE, format="qcow2", version=2)
    async with face.open(tmp_path / "old.qcow2", write=True) as image:
        with pytest.raises(pyimago.UnsupportedFeatureError, match="version 2"):
            await image.bitmaps.add("a")


async def test_a_bitmap_that_was_not_stored_is_inconsistent(face: Face, path: Path, tmp_path: Path) -> None:
    crashed = tmp_path / "crashed.qcow2"
    async with face.open(path, write=True) as image:
        await image.bitmaps.add("day")
        await image.write(b"x", 0)
        await image.flush()
        crashed.write_bytes(path.read_bytes())
    async with face.open(crashed, write=True) as image:
        (day,) = await image.bitmaps.list()
        assert (day.flags, day.count) == (["in-use", "auto"], None)
        with pytest.raises(ValueError, match="inconsistent"):
            await image.bitmaps.ranges("day")
        await image.bitmaps.remove("day")
        assert await image.bitmaps.list() == []


async def test_ranges_come_in_any_number(face: Face, path: Path) -> None:
    async with face.open(path, write=True) as image:
        await image.bitmaps.add("fine", granularity=512)
        wanted = [(at * 2048, 512) for at in range(1500)]
        await image.write_many([(b"x", at) for at, _ in wanted])
        assert await image.bitmaps.ranges("fine") == wanted


async def test_qemu_agrees(face: Face, path: Path, qemu: Qemu) -> None:
    qemu.img("bitmap", "--add", path, "theirs")
    qemu.io(path, "write 1M 64k")
    async with face.open(path, write=True) as image:
        assert await image.bitmaps.ranges("theirs") == [(1 << 20, GRANULE)]
        await image.bitmaps.add("ours", granularity=4096)
        await image.write(b"x", 5000)
    qemu.assert_clean(path)
    copy = path.with_name("copy.qcow2")
    qemu.img("convert", "-f", "qcow2", "-O", "qcow2", "--bitmaps", path, copy)
    async with face.open(copy) as image:
        assert await image.bitmaps.ranges("ours") == [(4096, 4096)]
        assert await image.bitmaps.ranges("theirs") == [(0, GRANULE), (1 << 20, GRANULE)]
    said = json.loads(qemu.img("info", "--output=json", path))
    assert said["format-specific"]["data"]["bitmaps"] == _in_info(path)
