"""`convert` and `dd` through both faces: where from, where to, and what an end in the middle leaves."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pyimago
import pyimago.aio

if TYPE_CHECKING:
    from .face import Face

MIB = 1 << 20
SIZE = 6 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A qcow2 with data, zeroes and holes."""
    path = tmp_path / "disk.qcow2"
    pyimago.create(path, SIZE, format="qcow2")
    with pyimago.open(path, write=True) as image:
        image.write(bytes(range(1, 256)) * 2000, 70_000)
        image.write(bytes(MIB), 2 * MIB)
        image.write(b"end", SIZE - 3)
    return path


def content(path: Path) -> bytes:
    with pyimago.open(path) as image:
        return image.pread(image.size, 0)


def is_sound(path: Path) -> bool:
    found = pyimago.check(path)
    return (found.corruptions, found.leaks, found.check_errors) == (0, 0, 0)


async def test_several_sources_are_one_behind_the_other(face: Face, disk: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.raw"
    odd.write_bytes(b"x" * 700)
    with pyimago.open(disk) as image:
        await face.call("convert", [odd.as_posix(), disk], tmp_path / "out.raw")
        await face.call("convert", (image, image), tmp_path / "twice.qcow2", format="qcow2")
    assert (tmp_path / "out.raw").read_bytes() == b"x" * 700 + bytes(324) + content(disk)
    assert content(tmp_path / "twice.qcow2") == 2 * content(disk)
    with pytest.raises(ValueError, match="no source"):
        await face.call("convert", [], tmp_path / "none.raw")


async def test_into_an_open_image(face: Face, disk: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(b"\xa5" * (SIZE + 512))
    async with face.open(target, write=True, format="raw") as image:
        assert await face.call("convert", disk, image.raw) == pyimago.Converted()
    assert target.read_bytes() == content(disk) + b"\xa5" * 512
    small = tmp_path / "small.raw"
    small.write_bytes(b"\xa5" * 512)
    async with face.open(small, write=True, format="raw") as image:
        with pytest.raises(ValueError, match="smaller than input"):
            await face.call("convert", disk, image.raw)
    assert small.read_bytes() == b"\xa5" * 512
    other = tmp_path / "other.raw"
    other.write_bytes(b"x" * 512)
    async with face.open(small, format="raw") as image:
        with pytest.raises(io.UnsupportedOperation):
            await face.call("convert", other, image.raw)


@pytest.mark.parametrize("format", ["raw", "qcow2"])
async def test_into_a_stream(face: Face, disk: Path, tmp_path: Path, format: str) -> None:
    stream = io.BytesIO()
    await face.call("convert", disk, stream, format=format)
    out = tmp_path / "out"
    out.write_bytes(stream.getvalue())
    assert content(out) == content(disk)
    assert not stream.closed
    if format == "qcow2":
        assert is_sound(out)
        assert len(stream.getvalue()) < 2 * MIB + 512 * 1024


class Stubborn:
    """Takes a little at a time, and then nothing any more."""

    def __init__(self, most: int) -> None:
        self.taken = bytearray()
        self.most = most

    def write(self, data: bytes) -> int:
        if len(self.taken) >= self.most:
            raise BrokenPipeError(32, "nobody reads")
        part = data[:10_000]
        self.taken += part
        return len(part)


async def test_what_a_stream_raises_ends_it(face: Face, disk: Path) -> None:
    stream = Stubborn(100_000)
    with pytest.raises(BrokenPipeError, match="nobody reads"):
        await face.call("convert", disk, stream)
    assert len(stream.taken) >= 100_000
    assert content(disk).startswith(stream.taken)
    stream = Stubborn(SIZE + 1)
    await face.call("convert", disk, stream)
    assert stream.taken == content(disk)


@pytest.mark.parametrize("options", [{"compress": True}, {"bitmaps": "all"}, {"preallocation": "full"}])
async def test_what_a_stream_cannot_have(face: Face, disk: Path, options: dict[str, Any]) -> None:
    stream = io.BytesIO()
    with pytest.raises(pyimago.UnsupportedFeatureError):
        await face.call("convert", disk, stream, format="qcow2", **options)
    assert stream.getvalue() == b""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparse": 100}, "multiple of 512"),
        ({"sparse": 1 << 30}, "multiple of 512"),
        ({"threads": 0}, "between 1 and 16"),
        ({"threads": 17}, "between 1 and 16"),
        ({"bitmaps": "some"}, "'none', 'all' or 'sound'"),
        ({"offload": "none"}, "'off', 'share' or 'copy'"),
        ({"offload": "copy", "sparse": 4096}, "goes with none of"),
        ({"offload": "copy", "salvage": True}, "goes with none of"),
        ({"offload": "copy", "compress": True, "format": "qcow2"}, "goes with none of"),
        ({"compression_level": 3}, "without compress"),
        ({"format": "qcow2", "backing": "base"}, "explicit backing format"),
        ({"layer": True}, "layer is for an open target"),
        ({"target_is_zero": True}, "target_is_zero is for an open target"),
    ],
)
async def test_what_cannot_be_is_refused_first(
    face: Face, disk: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        await face.call("convert", disk, tmp_path / "out", **options)
    assert {path.name for path in tmp_path.iterdir()} == {"disk.qcow2"}


@pytest.mark.parametrize("format", ["raw", "qcow2"])
@pytest.mark.parametrize("offload", ["off", "share", "copy"])
async def test_what_is_not_read_is_the_same(
    face: Face, disk: Path, tmp_path: Path, offload: str, format: Any
) -> None:
    """The rows of every way that data can lie: plain, packed, below, in parts of clusters."""
    top = tmp_path / "top.qcow2"
    pyimago.create(top, format="qcow2", backing=disk, backing_format="qcow2", cluster_size=4096)
    with pyimago.open(top, write=True) as image:
        image.write(b"above" * 10_000, 100_001)
        image.write_compressed(b"packed  " * 512, 8192)
        image.write_zeroes(3 * MIB, 70_000)
    for source in (disk, top):
        await face.call("convert", source, tmp_path / "out", format=format, offload=offload)
        assert content(tmp_path / "out") == content(source)
        there = tmp_path / "there"
        pyimago.create(there, SIZE + 512, format=format, overwrite=True)
        with pyimago.open(there, format=format, write=True) as image:
            image.write(b"\xee" * SIZE, 0)
            await face.call("convert", source, image, offload=offload)
            assert image.pread(SIZE + 512, 0) == content(source) + bytes(512)
        if format == "qcow2":
            assert is_sound(tmp_path / "out")
            assert is_sound(there)


async def test_one_layer_over_another_backing_file(face: Face, disk: Path, tmp_path: Path) -> None:
    top, copy, out = tmp_path / "top.qcow2", tmp_path / "copy.raw", tmp_path / "out.qcow2"
    pyimago.create(top, format="qcow2", backing="disk.qcow2", backing_format="qcow2")
    with pyimago.open(top, write=True) as image:
        image.write(b"changed" * 1000, 100_000)
    pyimago.convert(disk, copy)
    await face.call("convert", top, out, format="qcow2", backing="copy.raw", backing_format="raw")
    assert content(out) == content(top)
    assert pyimago.info(out).backing_filename == "copy.raw"
    with pyimago.open(out, backing=None) as image:
        assert sum(extent.length for extent in image.extents() if extent.data) == 65536
    into = tmp_path / "into.qcow2"
    pyimago.create(into, format="qcow2", backing="copy.raw", backing_format="raw")
    async with face.open(into, write=True) as target:
        await face.call("convert", top, target.raw, layer=True)
    assert content(into) == content(top)


async def test_bitmaps_come_along(face: Face, disk: Path, tmp_path: Path) -> None:
    with pyimago.open(disk, write=True) as image:
        image.bitmaps.add("daily", granularity=65536)
        image.write(b"dirty", 3 * MIB)
        image.bitmaps.add("off")
        image.bitmaps.disable("off")
    out = tmp_path / "out.qcow2"
    await face.call("convert", disk, out, format="qcow2", bitmaps="all")
    with pyimago.open(out) as image:
        found = {bitmap.name: bitmap for bitmap in image.bitmaps.list()}
        assert list(image.bitmaps.ranges("daily")) == [(3 * MIB, 65536)]
    assert found.keys() == {"daily", "off"}
    assert (found["daily"].flags, found["off"].flags) == (["auto"], [])
    with pytest.raises(pyimago.UnsupportedFeatureError, match="does not support bitmaps"):
        await face.call("convert", disk, tmp_path / "out.raw", bitmaps="all")


async def test_salvage_lists_what_is_lost(face: Face, disk: Path, tmp_path: Path) -> None:
    packed, out = tmp_path / "packed.qcow2", tmp_path / "out.raw"
    pyimago.convert(disk, packed, format="qcow2", compress=True)
    with pyimago.open(packed) as image:
        first = next(extent for extent in image.extents() if extent.compressed)
    with packed.open("r+b") as file:
        # The last cluster of tables is the L2 table; what is packed comes behind it.
        file.seek(5 * 65536 + 10)
        file.write(b"\xff" * 500)
    with pytest.raises(pyimago.ImagoError):
        await face.call("convert", packed, out)
    assert not out.exists()
    converted = await face.call("convert", packed, out, salvage=True)
    assert converted.unreadable
    expected = bytearray(content(disk))
    for offset, length in converted.unreadable:
        assert first.offset <= offset
        expected[offset : offset + length] = bytes(length)
    assert out.read_bytes() == expected


async def test_a_data_file_is_made_too(face: Face, disk: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.qcow2"
    await face.call("convert", disk, out, format="qcow2", data_file="data", data_file_raw=True)
    assert content(out) == content(disk) == (tmp_path / "data").read_bytes()
    with pytest.raises(FileExistsError):
        await face.call("convert", disk, tmp_path / "other.qcow2", format="qcow2", data_file="data")
    assert {path.name for path in tmp_path.iterdir()} == {"disk.qcow2", "out.qcow2", "data"}


async def test_dd_copies_blocks(face: Face, disk: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for block_size, count, skip in [
        (512, None, 0),
        (1000, 70, 70),
        (65536, 3, 1),
        (4096, None, 1500),
        (512, 0, 0),
    ]:
        await face.call("dd", disk, out, block_size=block_size, count=count, skip=skip)
        start = skip * block_size
        end = SIZE if count is None else min(SIZE, start + count * block_size)
        assert out.read_bytes() == content(disk)[start:end]
    await face.call("dd", disk, out, block_size=MIB, skip=100, format="qcow2")
    assert pyimago.info(out).virtual_size == 0


@pytest.mark.parametrize("options", [{"block_size": 0}, {"block_size": -1}, {"count": -1}, {"skip": -1}])
async def test_dd_takes_no_blocks_that_cannot_be(
    face: Face, disk: Path, tmp_path: Path, options: dict[str, int]
) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} is"):
        await face.call("dd", disk, tmp_path / "out", **options)
    assert {path.name for path in tmp_path.iterdir()} == {"disk.qcow2"}


@pytest.mark.parametrize("sparse", [None, 0])
async def test_what_rounding_adds_to_an_encrypted_disk_is_zeroes(
    face: Face, tmp_path: Path, sparse: int | None
) -> None:
    odd, out = tmp_path / "odd.raw", tmp_path / "out.luks"
    odd.write_bytes(b"x" * 5005)
    options: dict[str, Any] = {"format": "luks", "secret": "s", "iterations": 1000, "sparse": sparse}
    await face.call("convert", odd, out, source_format="raw", **options)
    with pyimago.open(out, format="luks", secret="s") as image:
        assert image.pread(image.size, 0) == b"x" * 5005 + bytes(115)


async def test_an_open_target_keeps_its_layout(face: Face, disk: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.qcow2"
    pyimago.create(target, SIZE, format="qcow2")
    async with face.open(target, write=True) as image:
        with pytest.raises(ValueError, match="stays what it is: it takes no cluster_size"):
            await face.call("convert", disk, image.raw, format="qcow2", cluster_size=4096)


@pytest.mark.parametrize("taken", [-1, 1 << 40])
async def test_a_stream_takes_no_more_than_it_gets(face: Face, disk: Path, taken: int) -> None:
    class Stream:
        def write(self, data: bytes) -> int:
            return taken

    with pytest.raises(ValueError, match=f"it took {taken} bytes of the"):
        await face.call("convert", disk, Stream(), format="raw")


async def test_an_end_in_the_middle_leaves_an_open_target_usable(
    face: Face, disk: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target.qcow2"
    pyimago.create(target, SIZE, format="qcow2")

    def give_up(done: int, total: int) -> None:
        if done:
            raise RuntimeError("enough")

    async with face.open(target, write=True) as image:
        with pytest.raises(RuntimeError, match="enough"):
            await face.call("convert", disk, image.raw, progress=give_up)
        assert not image.closed
    assert is_sound(target)
