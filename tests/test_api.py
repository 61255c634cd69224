"""Every method of both classes, once synchronous and once awaited."""

from __future__ import annotations

import array
import mmap
import pickle
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.conftest import MakeImage, pattern

import pyimago

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.face import Face

SIZE = 1 << 20
CONTENT = pattern(3, SIZE)


@pytest.fixture
def path(make_image: MakeImage) -> Path:
    return make_image(CONTENT)


async def test_facts_of_an_open_image(face: Face, path: Path) -> None:
    async with face.open(path) as image:
        assert (image.size, image.format, image.writable, image.closed) == (SIZE, "qcow2", False, False)
    assert image.closed
    assert (image.size, image.format, image.writable) == (SIZE, "qcow2", False)


async def test_read_fills_the_buffer(face: Face, path: Path) -> None:
    buf = bytearray(5000)
    async with face.open(path) as image:
        await image.read(buf, 70_001)
    assert buf == CONTENT[70_001:75_001]


BUFFERS: dict[str, Callable[[], Any]] = {
    "bytearray": lambda: bytearray(4096),
    "memoryview": lambda: memoryview(bytearray(4096)),
    "array": lambda: array.array("I", bytes(4096)),
    "numpy": lambda: np.zeros(4096, np.uint8),
    "numpy 2-D": lambda: np.zeros((8, 64), np.float64),
    "mmap": lambda: mmap.mmap(-1, 4096),
}


@pytest.mark.parametrize("kind", BUFFERS)
async def test_any_writable_buffer_is_filled_in_place(face: Face, path: Path, kind: str) -> None:
    buf = BUFFERS[kind]()
    async with face.open(path) as image:
        await image.read(buf, 8192)
    with memoryview(buf) as view:
        assert bytes(view) == CONTENT[8192:12_288]


async def test_a_slice_of_a_buffer_is_filled_and_nothing_beside_it(face: Face, path: Path) -> None:
    buf = bytearray(b"x" * 1000)
    async with face.open(path) as image:
        await image.read(memoryview(buf)[100:200], 0)
    assert buf == b"x" * 100 + CONTENT[:100] + b"x" * 800


@pytest.mark.parametrize("kind", BUFFERS)
async def test_any_buffer_is_written(face: Face, path: Path, kind: str) -> None:
    data = BUFFERS[kind]()
    with memoryview(data) as view:
        view.cast("B")[:] = pattern(9, 4096) if view.ndim == 1 else bytes(4096)
        wanted = bytes(view)
    async with face.open(path, write=True) as image:
        await image.write(data, 100_000)
        assert await image.pread(4096, 100_000) == wanted


async def test_readv_fills_the_buffers_in_order(face: Face, path: Path) -> None:
    bufs = [bytearray(10), bytearray(0), bytearray(70_000), bytearray(1)]
    async with face.open(path) as image:
        await image.readv(bufs, 1000)
    assert b"".join(bufs) == CONTENT[1000:71_011]


async def test_pread_returns_bytes(face: Face, path: Path) -> None:
    async with face.open(path) as image:
        assert await image.pread(100, SIZE - 100) == CONTENT[-100:]
        assert await image.pread(0, SIZE) == b""


async def test_read_many_fills_each_buffer(face: Face, path: Path) -> None:
    offsets = [0, 500_000, 12_345, SIZE - 512, 0]
    bufs = [bytearray(512) for _ in offsets]
    async with face.open(path) as image:
        await image.read_many(zip(bufs, offsets, strict=True))
        await image.read_many([])
    assert [bytes(buf) for buf in bufs] == [CONTENT[at : at + 512] for at in offsets]


async def test_what_is_written_is_read_at_once_and_after_opening_again(face: Face, path: Path) -> None:
    wanted = bytearray(CONTENT)
    wanted[5:70_005] = pattern(1, 70_000)
    async with face.open(path, write=True) as image:
        await image.write(pattern(1, 70_000), 5)
        assert await image.content() == wanted
    async with face.open(path) as image:
        assert await image.content() == wanted


async def test_writev_takes_the_parts_in_order(face: Face, path: Path) -> None:
    async with face.open(path, write=True) as image:
        await image.writev([b"one", bytearray(b"two"), memoryview(b"three")], 65_530)
        assert await image.pread(11, 65_530) == b"onetwothree"


async def test_write_many_writes_each(face: Face, path: Path) -> None:
    async with face.open(path, write=True) as image:
        await image.write_many([(b"a" * 100, 0), (b"b" * 70_000, 200_000), (b"c", SIZE - 1)])
        assert await image.pread(100, 0) == b"a" * 100
        assert await image.pread(70_000, 200_000) == b"b" * 70_000
        assert await image.pread(1, SIZE - 1) == b"c"


async def test_write_zeroes_leaves_zeroes_and_nothing_else(face: Face, path: Path) -> None:
    async with face.open(path, write=True) as image:
        await image.write_zeroes(1000, 200_000)
        wanted = CONTENT[:1000] + bytes(200_000) + CONTENT[201_000:]
        assert await image.content() == wanted


async def test_discard_zeroes_whole_clusters_and_gives_their_space_back(face: Face, path: Path) -> None:
    async with face.open(path, write=True) as image:
        await image.discard(65_536, 2 * 65_536)
        assert await image.content() == CONTENT[:65_536] + bytes(2 * 65_536) + CONTENT[3 * 65_536 :]
        assert not any(extent.data for extent in await image.extents(65_536, 2 * 65_536))
        await image.flush()
        used = path.stat().st_blocks * 512
        assert used < SIZE - 65_536 + 6 * 65_536


async def test_extents_cover_the_image_and_say_where_its_bytes_are(face: Face, path: Path) -> None:
    async with face.open(path, write=True) as image:
        await image.write_zeroes(0, 131_072)
        await image.flush()
        extents = await image.extents()
        end = 0
        for extent in extents:
            assert extent.offset == end
            end += extent.length
            assert extent.depth == 0
        assert end == SIZE
        assert extents[0].zero
        assert not extents[0].data
        assert extents[0].length == 131_072
        last = extents[-1]
        assert (last.data, last.zero, last.allocated, last.compressed) == (True, False, True, False)
        assert str(last.host_file) == str(path)
    assert last.host_offset is not None
    assert path.read_bytes()[last.host_offset :][: last.length] == CONTENT[last.offset :][: last.length]


async def test_extents_of_a_part_are_cut_to_it(face: Face, path: Path) -> None:
    async with face.open(path) as image:
        extents = await image.extents(1000, 500)
        assert [(extent.offset, extent.length) for extent in extents] == [(1000, 500)]
        assert await image.extents(SIZE) == []
        assert sum(extent.length for extent in await image.extents(SIZE - 7)) == 7


async def test_extents_are_frozen_records(face: Face, path: Path) -> None:
    async with face.open(path) as image:
        (extent,) = await image.extents(0, 512)
        (again,) = await image.extents(0, 512)
    assert extent == again
    assert hash(extent) == hash(again)
    assert "offset=0" in repr(extent)
    with pytest.raises((AttributeError, FrozenInstanceError)):
        extent.offset = 1  # type: ignore[misc]


async def test_flush_makes_it_visible_to_another_reader(face: Face, path: Path) -> None:
    async with face.open(path, write=True) as image:
        await image.write(b"now", 0)
        await image.flush()
        qcow2 = pyimago.Qcow2.open_image_sync(pyimago.Memory(path.read_bytes()), write=False)
        with pyimago.SyncFormatAccess(qcow2) as other:
            assert other.pread(3, 0) == b"now"


async def test_close_flushes_and_may_be_called_again(face: Face, path: Path) -> None:
    async with face.open(path, write=True) as image:
        await image.write(b"late", 7)
        await image.close()
        assert image.closed
        await image.close()
    async with face.open(path) as image:
        assert await image.pread(4, 7) == b"late"


async def test_leaving_with_an_exception_closes_too(face: Face, path: Path) -> None:
    async def fail() -> None:
        async with face.open(path, write=True) as image:
            await image.write(b"kept", 0)
            raise LookupError(image)

    with pytest.raises(LookupError) as caught:
        await fail()
    assert caught.value.args[0].closed
    async with face.open(path) as image:
        assert await image.pread(4, 0) == b"kept"


async def test_an_explicit_backing_image_shows_where_nothing_is_allocated(
    face: Face, path: Path, tmp_path: Path
) -> None:
    top = tmp_path / "top.qcow2"
    pyimago.create(top, SIZE + 1024, format="qcow2")
    with pyimago.open(path) as backing:
        async with face.open(top, write=True, backing=backing) as image:
            assert await image.content() == CONTENT + bytes(1024)
            await image.write(b"over", 10)
            assert await image.pread(100, 0) == CONTENT[:10] + b"over" + CONTENT[14:100]
        assert backing.pread(100, 0) == CONTENT[:100]


async def test_a_raw_image_is_read_and_written(face: Face, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(CONTENT[:10_001])
    async with face.open(raw, write=True, format="raw") as image:
        assert (image.size, image.format) == (10_001, "raw")
        assert await image.content() == CONTENT[:10_001]
        await image.write(b"end", 9998)
        await image.write_zeroes(100, 5000)
    assert raw.read_bytes() == CONTENT[:100] + bytes(5000) + CONTENT[5100:9998] + b"end"


async def test_the_format_is_probed_where_none_is_given(face: Face, path: Path, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(4096))
    async with face.open(path) as image:
        assert image.format == "qcow2"
    async with face.open(raw) as image:
        assert image.format == "raw"


async def test_a_probed_raw_image_does_not_become_another_format(face: Face, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(4096))
    async with face.open(raw, write=True) as image:
        with pytest.raises((ValueError, OSError, pyimago.ImagoError), match="format"):
            await image.write(b"QFI\xfb" + bytes(100), 0)
        await image.write(b"QFI\xfb", 512)
    assert raw.read_bytes()[:4] == bytes(4)


async def test_images_name_themselves(face: Face, path: Path) -> None:
    async with face.open(path) as image:
        assert path.name in repr(image.raw)
        with pytest.raises(TypeError):
            pickle.dumps(image.raw)
