"""Snapshots and the size of the disk, synchronous and awaited."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import pyimago

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Qemu
    from tests.face import Face

SIZE = 4 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    pyimago.create(tmp_path / "image.qcow2", SIZE, format="qcow2")
    return tmp_path / "image.qcow2"


async def test_a_snapshot_keeps_the_disk_as_it_was(face: Face, path: Path) -> None:
    async with face.open(path, write=True) as image:
        await image.write(b"before", 1 << 20)
        first = await image.snapshots.create("first")
        assert (first.id, first.name, first.vm_state_size, first.icount) == ("1", "first", 0, None)
        assert repr(first) == f"Snapshot(id='1', name='first', date_sec={first.date_sec})"
        await image.write(b"after!", 1 << 20)
        await image.snapshots.create("second", id="mine")
        await image.snapshots.rename("mine", "renamed")
        assert [(s.id, s.name) for s in await image.snapshots.list()] == [("1", "first"), ("mine", "renamed")]
        assert (await image.snapshots.list())[0] == first
        await image.snapshots.apply("first")
        assert await image.pread(6, 1 << 20) == b"before"
        await image.snapshots.delete("first")
        for name in ("first", "1"):
            with pytest.raises(ValueError, match="no snapshot"):
                await image.snapshots.apply(name)
    async with face.open(path, snapshot="renamed") as image:
        assert not image.writable
        assert await image.pread(6, 1 << 20) == b"after!"
    with pytest.raises(ValueError, match="only read"):
        async with face.open(path, snapshot="mine", write=True):
            pass


async def test_qemu_lists_them_as_this_does(face: Face, path: Path, qemu: Qemu) -> None:
    async with face.open(path, write=True) as image:
        made = await image.snapshots.create("n\u00e4me")
    (theirs,) = json.loads(qemu.img("info", "--output=json", path))["snapshots"]
    names = ("id", "name", "vm-state-size", "date-sec", "date-nsec", "vm-clock-sec", "vm-clock-nsec")
    assert [getattr(made, name.replace("-", "_")) for name in names] == [theirs[name] for name in names]
    qemu.img("check", path)


async def test_the_size_follows(face: Face, path: Path, qemu: Qemu) -> None:
    async with face.open(path, write=True) as image:
        await image.write(b"x" * 1000, SIZE - 1000)
        await image.snapshots.create("old")
        await image.resize(SIZE // 2)
        assert image.size == SIZE // 2
        with pytest.raises(ValueError, match="past the end"):
            await image.pread(1, SIZE // 2)
        await image.resize(2 * SIZE, preallocation="metadata")
        assert await image.content() == bytes(2 * SIZE)
        await image.snapshots.apply("old")
        assert image.size == SIZE
        assert (await image.content()).endswith(b"\0" + b"x" * 1000)
        for size, options in ((1000, {}), (512, {"preallocation": "full"}), (512, {"preallocation": "much"})):
            with pytest.raises(ValueError, match=r"multiples|shrinks|preallocation"):
                await image.resize(size, **options)
        assert image.size == SIZE
    assert image.size == SIZE
    qemu.img("check", path)


async def test_a_raw_image_has_a_size_and_no_snapshots(face: Face, tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"raw")
    async with face.open(path, write=True, format="raw") as image:
        await image.resize(5)
        assert await image.content() == b"raw\0\0"
        with pytest.raises(pyimago.UnsupportedFeatureError, match="no snapshots"):
            await image.snapshots.list()
    assert path.read_bytes() == b"raw\0\0"


async def test_what_is_only_read_keeps_its_snapshots_and_size(face: Face, path: Path) -> None:
    async with face.open(path) as image:
        assert await image.snapshots.list() == []
        with pytest.raises(OSError, match="reading only"):
            await image.snapshots.create("x")
        with pytest.raises(OSError, match="reading only"):
            await image.resize(512)
