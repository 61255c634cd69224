"""Committing an image into the one below it: what it comes to, and what is left where it is stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.conftest import MakeImage, Qemu, pattern

import pyimago

if TYPE_CHECKING:
    from tests.face import Face

SIZE = 5 << 20
CONTENT = pattern(3, 1 << 20) + bytes(3 << 20) + pattern(4, 1 << 20)


def over(backing: Path, name: str, changes: dict[int, bytes]) -> Path:
    """An image over `backing` with `changes` by offset."""
    path = backing.with_name(name)
    pyimago.create(path, format="qcow2", backing=backing.name, backing_format="qcow2")
    with pyimago.open(path, format="qcow2", write=True) as image:
        for offset, data in changes.items():
            image.write(data, offset)
    return path


def content(path: Path) -> bytes:
    with pyimago.open(path, format="qcow2") as image:
        return image.pread(image.size, 0)


def own(path: Path) -> int:
    """Bytes that the image itself holds."""
    return sum(extent.length for extent in pyimago.map(path) if extent.depth == 0 and extent.allocated)


async def test_what_an_image_holds_goes_below_and_the_image_is_empty(
    face: Face, make_image: MakeImage, qemu: Qemu
) -> None:
    base = make_image(CONTENT, "base.qcow2")
    top = over(base, "top.qcow2", {100: b"changed", 2 << 20: pattern(9, 200_000)})
    shown = content(top)
    calls: list[tuple[int, int]] = []
    await face.call("commit", top, progress=lambda done, total: calls.append((done, total)))
    assert calls[0] == (0, SIZE)
    assert content(base) == content(top) == qemu.content(top) == shown
    assert own(top) == 0
    qemu.assert_clean(base)
    qemu.assert_clean(top)


async def test_a_base_by_name_and_an_image_that_is_kept(face: Face, make_image: MakeImage) -> None:
    base = make_image(CONTENT, "base.qcow2")
    middle = over(base, "middle.qcow2", {0: b"middle"})
    top = over(middle, "top.qcow2", {1 << 20: b"top"})
    shown, before = content(top), top.read_bytes()
    await face.call("commit", top, base="base.qcow2")
    assert content(base) == shown
    assert top.read_bytes() == before
    with pytest.raises(ValueError, match=r"elsewhere.qcow2.* is none of the backing files"):
        await face.call("commit", top, base="elsewhere.qcow2")
    with pytest.raises(ValueError, match="no backing file"):
        await face.call("commit", base)
    await face.call("commit", top, keep=True)
    assert content(middle) == shown
    assert top.read_bytes() == before


async def test_a_base_in_use_is_left_alone(face: Face, make_image: MakeImage) -> None:
    base = make_image(CONTENT, "base.qcow2")
    top = over(base, "top.qcow2", {0: b"changed"})
    before = base.read_bytes()
    with pyimago.open(base), pytest.raises(pyimago.ImageLockedError, match=r"base\.qcow2"):
        await face.call("commit", top)
    assert base.read_bytes() == before


async def test_a_rebase_onto_itself_is_told_for_what_it_is(face: Face, make_image: MakeImage) -> None:
    base = make_image(CONTENT, "base.qcow2")
    top = over(base, "top.qcow2", {0: b"changed"})
    upper = over(top, "upper.qcow2", {})
    before = top.read_bytes()
    with pytest.raises(ValueError, match=r"top\.qcow2: an image cannot be its own backing file"):
        await face.call("rebase", top, "top.qcow2", backing_format="qcow2")
    with pytest.raises(pyimago.InvalidImageError, match=r"top\.qcow2: .*comes back to this file"):
        await face.call("rebase", top, "upper.qcow2", backing_format="qcow2")
    assert top.read_bytes() == before
    assert upper.exists()


@pytest.mark.parametrize("sizes", [(1 << 20, SIZE), (SIZE, 1 << 20), (SIZE + 512, 2 << 20)])
async def test_a_rebase_between_disks_of_other_sizes(
    face: Face, make_image: MakeImage, qemu: Qemu, sizes: tuple[int, int]
) -> None:
    old = make_image(pattern(1, sizes[0]), "old.qcow2")
    make_image(pattern(2, sizes[1]), "new.qcow2")
    top = old.with_name("top.qcow2")
    pyimago.create(top, 3 << 20, format="qcow2", backing="old.qcow2", backing_format="qcow2")
    shown = content(top)
    await face.call("rebase", top, "new.qcow2", backing_format="qcow2")
    assert content(top) == qemu.content(top) == shown
    qemu.assert_clean(top)


async def test_a_rebase_that_compresses(face: Face, make_image: MakeImage, qemu: Qemu) -> None:
    compressible = bytes(range(256)) * 4096 + bytes(1 << 20) + b"x" * 100_000
    base = make_image(compressible, "base.qcow2")
    top = over(base, "top.qcow2", {5000: b"changed"})
    shown = content(top)
    await face.call("rebase", top, None, compress=True, compression_level=9)
    assert content(top) == qemu.content(top) == shown
    qemu.assert_clean(top)
    assert any(extent.compressed for extent in pyimago.map(top))
    assert top.stat().st_size < 600_000
    with pytest.raises(ValueError, match="compression_level"):
        await face.call("rebase", top, None, compression_level=3)


async def test_map_is_what_an_open_image_says(face: Face, make_image: MakeImage, qemu: Qemu) -> None:
    base = make_image(CONTENT, "base.qcow2")
    # Whole clusters: qemu-img tells holes of the file, too.
    top = over(base, "top.qcow2", {2 << 20: pattern(5, 65536)})
    async with face.open(top) as image:
        assert await face.call("map", top) == await image.extents()
    (extent,) = await face.call("map", top, 2 << 20, 100)
    assert (extent.offset, extent.length, extent.depth) == (2 << 20, 100, 0)
    theirs = json.loads(qemu.img("map", "--output=json", "-f", "qcow2", top))
    assert [extent.to_dict() for extent in pyimago.map(top)] == theirs


async def test_resize_shrinks_only_where_that_is_allowed(face: Face, make_image: MakeImage) -> None:
    path = make_image(CONTENT)
    await face.call("resize", path, SIZE + 512)
    assert content(path) == CONTENT + bytes(512)
    with pytest.raises(ValueError, match="shrink=True"):
        await face.call("resize", path, SIZE)
    assert pyimago.info(path).virtual_size == SIZE + 512
    await face.call("resize", path, 512, shrink=True)
    assert content(path) == CONTENT[:512]


async def test_snapshots_of_a_file(face: Face, make_image: MakeImage) -> None:
    path = make_image(CONTENT)

    async def snapshot(verb: str, *arguments: str, **options: str) -> object:
        return await face.call(f"snapshot.{verb}", path, *arguments, **options)

    made = await snapshot("create", "before")
    assert await snapshot("list") == [made]
    with pyimago.open(path, write=True) as image:
        image.write(b"changed", 0)
    await snapshot("apply", "before")
    assert content(path) == CONTENT
    await snapshot("rename", "before", "after")
    (kept,) = pyimago.snapshot.list(path)
    assert kept.name == "after"
    assert [kept.to_dict()] == pyimago.info(path).to_dict()["snapshots"]
    await snapshot("delete", "after")
    assert await snapshot("list") == []
    with pytest.raises(ValueError, match="after"):
        await snapshot("delete", "after")


async def test_bitmaps_of_a_file(face: Face, make_image: MakeImage) -> None:
    path, other = make_image(CONTENT), make_image(CONTENT, "other.qcow2")

    async def bitmap(verb: str, path: Path, *arguments: str, **options: object) -> object:
        return await face.call(f"bitmap.{verb}", path, *arguments, **options)

    await bitmap("add", path, "one", granularity=65536)
    await bitmap("add", other, "two", enabled=False)
    await bitmap("enable", other, "two")
    with pyimago.open(other, write=True) as image:
        image.write(b"changed", 100_000)
    await bitmap("disable", other, "two")
    await bitmap("merge", path, "one", "two", source_path=other)
    with pyimago.open(path) as image:
        assert list(image.bitmaps.ranges("one")) == [(65536, 65536)]
    await bitmap("clear", path, "one")
    (one,) = pyimago.bitmap.list(path)
    assert (one.name, one.count, one.flags) == ("one", 0, ["auto"])
    assert [one.to_dict()] == pyimago.info(path).to_dict()["format-specific"]["data"]["bitmaps"]
    await bitmap("add", path, "other")
    await bitmap("merge", path, "other", "one")
    await bitmap("remove", path, "one")
    assert [found.name for found in pyimago.bitmap.list(path)] == ["other"]


async def test_bench_does_the_requests_that_it_counts(face: Face, make_image: MakeImage) -> None:
    path = make_image(CONTENT)
    result = await face.call("bench", path, count=100, depth=4)
    assert (result.write, result.count, result.request_size, result.depth) == (False, 100, 4096, 4)
    assert result.seconds > 0
    assert result.bytes_per_second == result.requests_per_second * 4096 > 0
    assert content(path) == CONTENT
    options = {"write": True, "pattern": 7, "step": 8192, "request_size": 512, "flush_interval": 3}
    written = await face.call("bench", path, count=10, depth=2, offset=4096, **options)
    assert written.to_dict()["write"] is True
    expected = bytearray(CONTENT)
    for at in range(10):
        expected[4096 + at * 8192 : 4608 + at * 8192] = b"\7" * 512
    assert content(path) == bytes(expected)
    for wrong, told in (
        ({"count": 0}, "no request"),
        ({"depth": 0}, "1 to 1024"),
        ({"flush_interval": 1}, "writing only"),
        ({"offset": SIZE}, "pass the end of the disk"),
    ):
        with pytest.raises(ValueError, match=told):
            await face.call("bench", path, **wrong)
