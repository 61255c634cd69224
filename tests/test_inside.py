"""Commit, rebase, amend, bench and check of images that are no whole file, are open, or get other files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import MakeImage, pattern

import pyimago

if TYPE_CHECKING:
    from tests.conftest import Qemu
    from tests.face import Face

SIZE = 1 << 20
CONTENT = pattern(5, SIZE // 2) + bytes(SIZE // 2)
BEFORE = b"before" * 1024


def over(backing: Path, name: str, offset: int, data: bytes, **layout: object) -> Path:
    """An image over `backing` with `data` at `offset`."""
    path = backing.with_name(name)
    options = {"backing": backing.name, "backing_format": "qcow2", **layout}
    pyimago.create(path, format="qcow2", **options)  # type: ignore[arg-type]
    with pyimago.open(path, format="qcow2", write=True) as image:
        image.write(data, offset)
    return path


def bundled(path: Path) -> Path:
    """The image within another file."""
    bundle = path.with_name("bundle")
    bundle.write_bytes(BEFORE + path.read_bytes())
    path.unlink()
    return bundle


def part(bundle: Path) -> pyimago.Storage:
    """The image in it, to be written."""
    options = pyimago.StorageOpenOptions(filename=bundle, write=True)
    return pyimago.Slice(pyimago.File.open_sync(options), offset=len(BEFORE))


def shown(place: pyimago.Storage | Path) -> bytes:
    with pyimago.open(place, format="qcow2") as image:
        return image.pread(image.size, 0)


def specific(place: pyimago.Storage) -> dict[str, Any]:
    """What only qcow2 has to say."""
    found: dict[str, Any] = pyimago.info(place).to_dict()["format-specific"]["data"]
    return found


async def test_an_image_in_a_part_of_a_file_is_changed_there(
    face: Face, make_image: MakeImage, qemu: Qemu
) -> None:
    base = make_image(CONTENT, "base.qcow2")
    other = make_image(CONTENT[::-1], "other.qcow2")
    bundle = bundled(over(base, "top.qcow2", 70_000, b"changed"))
    content = CONTENT[:70_000] + b"changed" + CONTENT[70_007:]
    await face.call("rebase", part(bundle), other.name, backing_format="qcow2", format="qcow2")
    assert (pyimago.info(part(bundle)).backing_filename, shown(part(bundle))) == (other.name, content)
    await face.call("amend", part(bundle), version=2, format="qcow2")
    assert specific(part(bundle))["compat"] == "0.10"
    await face.call("amend", part(bundle), size=2 * SIZE)
    result = await face.call("bench", part(bundle), count=1, write=True, pattern=7, offset=SIZE)
    content += b"\7" * 4096 + bytes(SIZE - 4096)
    assert (result.count, shown(part(bundle))) == (1, content)
    await face.call("commit", part(bundle), format="qcow2")
    assert qemu.content(other) == shown(part(bundle)) == content
    assert (await face.call("check", part(bundle))).clean
    assert bundle.read_bytes().startswith(BEFORE)


async def test_a_part_is_not_its_own_backing_file(face: Face, make_image: MakeImage) -> None:
    bundle = bundled(over(make_image(CONTENT, "base.qcow2"), "top.qcow2", 0, b"changed"))
    before = bundle.read_bytes()
    with pytest.raises(ValueError, match="its own backing file"):
        await face.call("rebase", part(bundle), "bundle", backing_format="raw")
    assert bundle.read_bytes() == before


async def test_the_image_below_and_the_data_file_can_be_given(face: Face, make_image: MakeImage) -> None:
    base = make_image(CONTENT, "base.qcow2")
    longer = make_image(pattern(8, 2 * SIZE), "longer.qcow2")
    changed = b"changed!" * 8192
    top = over(base, "top.qcow2", 65536, changed, data_file="named")
    data = (top.with_name("named")).rename(top.with_name("moved"))
    base.unlink()
    with pytest.raises(FileNotFoundError):
        await face.call("check", top)
    assert (await face.call("check", top, data_file=data)).clean
    with pytest.raises(ValueError, match="no external data file"):
        await face.call("check", longer, data_file=data)
    for verb, options in (("amend", {"size": 3 * SIZE}), ("rebase", {"backing": None})):
        with pytest.raises(FileNotFoundError):
            await face.call(verb, top, opened_data_file=data, **options)
    with pyimago.open(longer, format="qcow2") as below:
        below_shows = below.pread(below.size, 0)
        content = below_shows[:65536] + changed + below_shows[131072:SIZE] + bytes(2 * SIZE)
        given = {"opened_backing": below, "opened_data_file": data}
        # What is new reads as zeroes, whatever the image below has there.
        await face.call("amend", top, size=3 * SIZE, **given)
        with pyimago.open(top, backing=below, data_file=data) as image:
            assert image.pread(image.size, 0) == content
        await face.call("rebase", top, None, format="qcow2", **given)
        assert below.pread(7, 70_000) == below_shows[70_000:70_007], "who opened it closes it"
    with pyimago.open(top, data_file=data) as image:
        assert image.pread(image.size, 0) == content


async def test_an_open_image_is_committed_into_what_is_written_below_it(
    face: Face, make_image: MakeImage, qemu: Qemu
) -> None:
    base = make_image(CONTENT, "base.qcow2")
    middle = over(base, "middle.qcow2", 0, b"middle")
    top = over(middle, "top.qcow2", 70_000, b"changed")
    content = b"middle" + CONTENT[6:70_000] + b"changed" + CONTENT[70_007:]
    async with face.open(top, write=True, write_backing=True) as image:
        await image.write(b"open", 100_000)
        content = content[:100_000] + b"open" + content[100_004:]
        await face.call("commit", image.raw)
        assert await image.content() == content
        await image.write(b"again", 200_000)
        with pytest.raises(ValueError, match="image is open: its base"):
            await face.call("commit", image.raw, base="base.qcow2")
    assert shown(middle) == content
    assert shown(top) == content[:200_000] + b"again" + content[200_005:]
    async with face.open(base, write=True) as below, face.open(middle, backing=below.raw) as image:
        with pytest.raises(OSError, match="open for reading only"):
            await face.call("commit", image.raw)
        await face.call("commit", image.raw, keep=True)
        assert await below.content() == content
    for written, told in ((base.name, None), ("nowhere", "none of the backing files")):
        if told is None:
            async with face.open(top, write_backing=written) as image:
                await face.call("commit", image.raw, keep=True)
        else:
            with pytest.raises(ValueError, match=told):
                async with face.open(top, write_backing=written):
                    pass
    assert shown(base) == shown(top)
    async with face.open(top, write=True) as image:
        with pytest.raises(ValueError, match="no image below this one is open for writing"):
            await face.call("commit", image.raw)
    async with face.open(middle) as lent:
        with pytest.raises(ValueError, match="whoever opened it said"):
            async with face.open(top, backing=lent.raw, write_backing=True):
                pass
    for path in (base, middle, top):
        qemu.assert_clean(path)


async def test_an_open_image_is_measured_and_stays_open(face: Face, make_image: MakeImage) -> None:
    path = make_image(CONTENT)
    async with face.open(path, format="qcow2") as image:
        assert (await face.call("bench", image.raw, count=3)).count == 3
        with pytest.raises(OSError, match="open for reading only"):
            await face.call("bench", image.raw, count=1, write=True)
        with pytest.raises(ValueError, match="path is open"):
            await face.call("bench", image.raw, count=1, format="qcow2")
        assert await image.content() == CONTENT
    async with face.open(path, format="qcow2", write=True) as image:
        await face.call("bench", image.raw, count=2, write=True, pattern=9)
        assert await image.pread(8192, 0) == b"\t" * 8192
    assert shown(path)[:8192] == b"\t" * 8192


async def test_an_image_within_an_image_is_changed_there(
    face: Face, make_image: MakeImage, tmp_path: Path, qemu: Qemu
) -> None:
    base = make_image(CONTENT, "base.qcow2")
    top = over(base, "top.qcow2", 70_000, b"changed")
    disk, outer = tmp_path / "disk", tmp_path / "outer.qcow2"
    disk.write_bytes(top.read_bytes() + bytes(2 * SIZE))
    pyimago.convert(disk, outer, source_format="raw", format="qcow2")
    content = CONTENT[:70_000] + b"changed" + CONTENT[70_007:]
    async with face.open(outer, format="qcow2", write=True) as image:
        within = pyimago.Disk(image.raw)
        await face.call("amend", within, refcount_bits=64)
        await face.call("rebase", within, None)
        assert shown(within) == content
        assert specific(within)["refcount-bits"] == 64
        assert pyimago.info(within).backing_filename is None
        assert (await face.call("check", within)).corruptions == 0
    qemu.assert_clean(outer)
