"""Snapshots and the size of the disk, synchronous and awaited."""

from __future__ import annotations

import gc
import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.face import Face, Image, settle

import pyimago

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Qemu

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


async def test_step_by_step_a_snapshot_and_cache_sizes_can_be_chosen(face: Face, path: Path) -> None:
    async with face.open(path, write=True) as image:
        await image.write(b"before", 1 << 20)
        await image.snapshots.create("small")
        await image.resize(2 * SIZE)
    options: dict[str, Any] = {"snapshot": "small", "l2_cache_size": 1 << 16, "refcount_cache_size": 1 << 16}
    sync = face.name == "sync"
    open_path = pyimago.Qcow2.open_path_sync if sync else pyimago.Qcow2.open_path
    open_image = pyimago.Qcow2.open_image_sync if sync else pyimago.Qcow2.open_image
    access = pyimago.SyncFormatAccess if sync else pyimago.FormatAccess
    for opening in (open_path(path, **options), open_image(pyimago.Memory(path.read_bytes()), **options)):
        image = Image(access(await settle(opening)))
        assert image.size == SIZE
        assert await image.pread(6, 1 << 20) == b"before"
        stats = image.raw.cache_stats()
        assert stats is not None
        assert stats.l2.capacity == 1 << 16
        await image.close()
    with pytest.raises(ValueError, match="only read"):
        await settle(open_path(path, write=True, snapshot="small"))
    with pytest.raises(ValueError, match="no snapshot"):
        await settle(open_path(path, snapshot="large"))


def test_what_belongs_to_an_image_keeps_it_open(path: Path) -> None:
    with pyimago.open(path, write=True) as image:
        image.write(b"x", 0)
        image.snapshots.create("one")
        image.bitmaps.add("map")
        image.write(b"x", 1 << 20)
    snapshots, bitmaps = pyimago.open(path).snapshots, pyimago.open(path).bitmaps
    extents, dirty = pyimago.open(path).extents(), pyimago.open(path).bitmaps.ranges("map")
    gc.collect()
    assert [snapshot.name for snapshot in snapshots.list()] == ["one"]
    assert [bitmap.name for bitmap in bitmaps.list()] == ["map"]
    assert sum(extent.length for extent in extents) == SIZE
    assert list(dirty) == [(1 << 20, 1 << 16)]
    assert isinstance(snapshots, pyimago.Snapshots)
    assert isinstance(bitmaps, pyimago.Bitmaps)
    # Gone with the last of them.
    with pytest.raises(pyimago.ImageLockedError):
        pyimago.open(path, write=True)
    del snapshots, bitmaps, extents, dirty
    gc.collect()
    pyimago.open(path, write=True).close()


async def test_a_chain_that_is_too_long_is_one_error(face: Face, tmp_path: Path) -> None:
    below: pyimago.SyncFormatAccess | pyimago.FormatAccess | None = None
    kept = []
    for number in range(256):
        pyimago.create(tmp_path / f"{number}", SIZE, format="qcow2", cluster_size=512)
        opened = pyimago.Qcow2.open_path_sync(tmp_path / f"{number}")
        opened.set_backing(below)
        below = pyimago.SyncFormatAccess(opened)
        kept.append(below)
    path = tmp_path / "one more"
    pyimago.create(path, SIZE, format="qcow2")
    with pytest.raises(pyimago.UnsupportedFeatureError, match="more than 256"):
        pyimago.Qcow2.open_path_sync(path).set_backing(below)
    gc.collect()
    with pytest.raises(pyimago.UnsupportedFeatureError, match="more than 256"):
        async with face.open(path, backing=below):
            pass
    for image in reversed(kept):
        image.close()
