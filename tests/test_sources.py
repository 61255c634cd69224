"""What verbs that read take: paths, storages, images that are open; and what opening takes beside."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import pattern

import pyimago

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MakeImage, Qemu
    from tests.face import Face

SIZE = 1 << 20
CONTENT = pattern(5, SIZE // 2) + bytes(SIZE // 2)


async def test_an_open_image_is_a_source_and_stays_open(
    face: Face, make_image: MakeImage, tmp_path: Path
) -> None:
    path = make_image(CONTENT)
    target = tmp_path / "target"
    async with face.open(path, format="qcow2", write=True) as image:
        await image.write(b"not flushed", 0)
        content = b"not flushed" + CONTENT[11:]
        await face.call("convert", image.raw, target)
        assert target.read_bytes() == content
        assert (await face.call("compare", image.raw, target)).identical
        assert (await face.call("compare", target, image.raw)).identical
        assert await face.call("hash", image.raw) == await face.call("hash", target)
        measured = await face.call("measure", image.raw, format="qcow2")
        assert measured.required < measured.fully_allocated
        assert await image.content() == content


async def test_a_storage_is_a_source(face: Face) -> None:
    memory = pyimago.Memory(CONTENT)
    part = pyimago.Slice(memory, offset=4096, size=8192)
    other = pyimago.Memory(CONTENT[4096 : 4096 + 8192])
    assert (await face.call("compare", part, other, first_format="raw", second_format="raw")).identical
    assert await face.call("hash", part) == await face.call("hash", other)
    async with face.open(part, format="raw") as image:
        assert (image.size, await image.pread(16, 0)) == (8192, CONTENT[4096:4112])
    assert (await face.call("info", part)).virtual_size == 8192


async def test_a_closed_image_or_anything_else_is_no_source(face: Face, make_image: MakeImage) -> None:
    path = make_image(CONTENT)
    async with face.open(path, format="qcow2") as image:
        for options in ({"format": "qcow2"}, {"secret": b"x"}):
            with pytest.raises(ValueError, match="source is open"):
                await face.call("hash", image.raw, **options)
    with pytest.raises(pyimago.ImageClosedError):
        await face.call("hash", image.raw)
    with pytest.raises(TypeError, match="first is a path, a storage or an open image"):
        await face.call("compare", 7, path)
    with pytest.raises(ValueError, match="null characters"):
        await face.call("hash", "a\0b")


async def test_closing_waits_for_what_reads_the_image(make_image: MakeImage) -> None:
    image = await pyimago.aio.open(make_image(CONTENT), format="qcow2")
    digest = asyncio.ensure_future(pyimago.aio.hash(image))
    await asyncio.sleep(0)
    await image.close()
    assert await digest == pyimago.hash(pyimago.Memory(CONTENT), format="raw")


async def test_an_image_in_a_part_of_a_file(face: Face, make_image: MakeImage, tmp_path: Path) -> None:
    inner = make_image(CONTENT).read_bytes()
    whole = tmp_path / "whole"
    whole.write_bytes(b"before" * 512 + inner + b"after" * 100)
    options = pyimago.StorageOpenOptions(filename=whole, write=True)
    file = pyimago.File.open_sync(options)
    part = pyimago.Slice(file, offset=3072, size=len(inner))
    assert (part.size, part.filename) == (len(inner), str(whole))
    async with face.open(part, format="qcow2", write=True) as image:
        assert await image.content() == CONTENT
        await image.write(b"new", 100)
    async with face.open(pyimago.Slice(pyimago.Memory(whole.read_bytes()), offset=3072)) as again:
        assert await again.pread(3, 100) == b"new"
    assert whole.read_bytes().startswith(b"before" * 512)
    assert whole.read_bytes().endswith(b"after" * 100)


async def test_a_part_with_a_size_keeps_it(face: Face) -> None:
    memory = pyimago.Memory(bytes(10_000))
    async with face.open(pyimago.Slice(memory, offset=1000, size=2000), format="raw", write=True) as image:
        with pytest.raises(pyimago.UnsupportedFeatureError):
            await image.resize(4000)
    async with face.open(pyimago.Slice(memory, offset=1000), format="raw", write=True) as image:
        await image.resize(4000)
        assert image.size == 4000
    assert memory.size == 5000
    for wrong in ({"offset": 5001}, {"offset": 4000, "size": 1001}, {"size": 5001}):
        with pytest.raises(ValueError, match="are not there"):
            pyimago.Slice(memory, **wrong)
    with pytest.raises((ValueError, OverflowError)):
        pyimago.Slice(memory, offset=-1)


async def test_lock_off_looks_at_an_image_that_is_written(face: Face, make_image: MakeImage) -> None:
    path = make_image(CONTENT)
    async with face.open(path, format="qcow2", write=True):
        for verb, options in (("check", {}), ("info", {"lock": "auto"}), ("info_chain", {"lock": "auto"})):
            with pytest.raises(pyimago.ImageLockedError):
                await face.call(verb, path, format="qcow2", **options)
            await face.call(verb, path, format="qcow2", lock="off")
        with pytest.raises(pyimago.ImageLockedError):
            async with face.open(path, format="qcow2"):
                pass
        async with face.open(path, format="qcow2", lock="off") as image:
            assert await image.content() == CONTENT
        with pytest.raises(ValueError, match="lock is 'auto' or 'off'"):
            async with face.open(path, lock="none"):
                pass
        with pytest.raises(ValueError, match="repair without locks"):
            await face.call("check", path, repair="all", lock="off")


async def test_direct_io_goes_down_the_chain(face: Face, qemu: Qemu, tmp_path: Path) -> None:
    raw, top = tmp_path / "base.raw", tmp_path / "top.qcow2"
    raw.write_bytes(CONTENT[:-100])
    qemu.img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", top)
    options: dict[str, Any] = {"format": "qcow2", "direct": True, "write": True}
    try:
        async with face.open(top, **options) as image:
            await image.write(b"odd", 4097)
            assert await image.pread(1000, 4000) == CONTENT[4000:4097] + b"odd" + CONTENT[4100:5000]
    except pyimago.UnsupportedFeatureError:
        pytest.skip("no direct I/O on this file system")
    qemu.assert_clean(top)


async def test_an_image_within_an_image(
    face: Face, make_image: MakeImage, tmp_path: Path, qemu: Qemu
) -> None:
    inner = make_image(CONTENT, "inner.qcow2").read_bytes()
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(65536) + inner + bytes(128 << 10))
    outer = tmp_path / "outer.qcow2"
    pyimago.convert(disk, outer, source_format="raw", format="qcow2", compress=True)
    async with face.open(outer, format="qcow2", write=True) as image:
        part = pyimago.Slice(pyimago.Disk(image.raw), offset=65536)
        async with face.open(part, format="qcow2", write=True) as within:
            assert await within.content() == CONTENT
            await within.write(b"deep", 70_000)
            await within.write_zeroes(0, 65536)
            with pytest.raises(OSError, match="past the end"):
                await within.write(b"x" * (SIZE // 2), SIZE // 2)
    qemu.assert_clean(outer)
    content = qemu.content(outer)
    assert content[:65536] == bytes(65536)
    async with face.open(pyimago.Memory(content[65536:]), format="qcow2") as within:
        assert (
            await within.pread(SIZE // 2, 0)
            == bytes(65536) + CONTENT[65536:70_000] + b"deep" + CONTENT[70_004 : SIZE // 2]
        )
