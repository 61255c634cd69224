"""Creating images: what is set aside, what is looked at, what is replaced."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Qemu
from tests.face import Face, settle

import pyimago
import pyimago.aio

MIB = 1 << 20


async def create(face: Face, *arguments: Any, **options: Any) -> None:
    """`pyimago.create` or `pyimago.aio.create`."""
    await settle((pyimago if face.name == "sync" else pyimago.aio).create(*arguments, **options))


@pytest.mark.parametrize("format", ["qcow2", "raw"])
@pytest.mark.parametrize("mode", ["off", "falloc", "full"])
async def test_space_is_set_aside(face: Face, tmp_path: Path, format: str, mode: str) -> None:
    path = tmp_path / "image"
    await create(face, path, 4 * MIB, format=format, preallocation=mode)
    assert (path.stat().st_blocks * 512 >= 4 * MIB) == (mode != "off")
    async with face.open(path, write=True, format=format) as image:
        assert await image.content() == bytes(4 * MIB)
        await image.write(b"data", MIB)
        assert await image.pread(6, MIB - 1) == b"\0data\0"


async def test_metadata_is_preallocated_as_qemu_does(face: Face, tmp_path: Path, qemu: Qemu) -> None:
    path = tmp_path / "image"
    await create(face, path, 4 * MIB, format="qcow2", preallocation="metadata")
    qemu.assert_clean(path)
    assert path.stat().st_size > 4 * MIB
    qemu.io(path, "write -P 7 1M 1M")
    async with face.open(path, format="qcow2") as image:
        assert await image.content() == bytes(MIB) + b"\7" * MIB + bytes(2 * MIB)
        assert all(extent.data and extent.depth == 0 for extent in await image.extents())


async def test_space_that_was_only_set_aside_is_known_to_be_zero(face: Face, tmp_path: Path) -> None:
    path = tmp_path / "image"
    await create(face, path, 64 * MIB, format="qcow2", preallocation="metadata")
    async with face.open(path, format="qcow2", write=True) as image:
        (extent,) = await image.extents()
        assert (extent.data, extent.zero, extent.allocated) == (True, True, True)
        assert extent.host_offset is not None
        await image.write(b"x" * MIB, 3 * MIB)
        await image.flush()
        found = [(e.offset, e.length) for e in await image.extents() if not e.zero]
        assert found == [(3 * MIB, MIB)]
        # What is written meanwhile shows at once.
        await image.write(b"y" * MIB, 40 * MIB)
        assert [e.offset for e in await image.extents() if not e.zero] == [3 * MIB, 40 * MIB]
    assert (await face.call("measure", path, format="qcow2")).required < 3 * MIB


async def test_the_backing_file_says_the_size(face: Face, tmp_path: Path) -> None:
    (tmp_path / "base one").write_bytes(b"base" * 1000)
    top = tmp_path / "top.qcow2"
    await create(face, top, format="qcow2", backing="base one", backing_format="raw")
    async with face.open(top, format="qcow2") as image:
        assert image.size == 4096
        assert await image.pread(4, 3996) == b"base"
    with pytest.raises(ValueError, match="size is missing"):
        await create(face, tmp_path / "x", format="qcow2")
    with pytest.raises(ValueError, match="size is missing"):
        await create(face, tmp_path / "x", format="qcow2", backing="b", backing_format="raw", unsafe=True)
    with pytest.raises(ValueError, match="size is missing"):
        await create(face, tmp_path / "x", format="raw")


async def test_the_backing_file_is_looked_at_unless_unsafe(face: Face, tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"no image" * 1000)
    top = tmp_path / "top.qcow2"
    with pytest.raises(FileNotFoundError):
        await create(face, top, MIB, format="qcow2", backing="gone", backing_format="raw")
    with pytest.raises(pyimago.InvalidImageError):
        await create(face, top, MIB, format="qcow2", backing="base", backing_format="qcow2")
    with pytest.raises(ValueError, match="format"):
        await create(face, top, MIB, format="qcow2", backing="base")
    assert [file.name for file in tmp_path.iterdir()] == ["base"]
    await create(face, top, MIB, format="qcow2", backing="nbd://host/x", backing_format="raw", unsafe=True)
    assert pyimago.info(top).backing_filename == "nbd://host/x"


@pytest.mark.parametrize("name", ["a:b", "./json:{}", "two words", "./c:d", os.fsdecode(b"not \xff text")])
async def test_odd_names_are_files(face: Face, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"base" * 1000)
    top = tmp_path / "top.qcow2"
    await create(face, top, format="qcow2", backing=name, backing_format="raw")
    async with face.open(top, format="qcow2") as image:
        assert await image.pread(4, 0) == b"base"
    data = f"{name}.data"
    image_path = tmp_path / "image.qcow2"
    await create(face, image_path, MIB, format="qcow2", data_file=data, preallocation="metadata")
    async with face.open(image_path, write=True, format="qcow2") as image:
        await image.write(b"data", 0)
    assert (tmp_path / data).read_bytes()[:4] == b"data"


async def test_files_are_replaced_only_on_demand(face: Face, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        await create(face, path, MIB, format="qcow2")
    with pytest.raises(ValueError, match="cluster size"):
        await create(face, path, MIB, format="qcow2", cluster_size=7, overwrite=True)
    with pytest.raises(ValueError, match="preallocation"):
        await create(face, path, MIB, format="qcow2", preallocation="some", overwrite=True)
    with pytest.raises(ValueError, match="metadata"):
        await create(face, path, MIB, format="raw", preallocation="metadata", overwrite=True)
    assert path.read_bytes() == b"precious"
    await create(face, path, MIB, format="qcow2", overwrite=True)
    async with face.open(path, write=True, format="qcow2") as image:
        with pytest.raises(pyimago.ImageLockedError):
            await create(face, path, MIB, format="raw", overwrite=True)
        await image.write(b"data", 0)
    assert [file.name for file in tmp_path.iterdir()] == ["image"]


@pytest.mark.parametrize("format", ["qcow2", "raw"])
async def test_conversions_preallocate(face: Face, tmp_path: Path, format: Any) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"disk" * (MIB // 4))
    with source.open("r+b") as file:
        file.truncate(4 * MIB)
    await settle(
        (pyimago if face.name == "sync" else pyimago.aio).convert(
            source, target, source_format="raw", format=format, preallocation="falloc"
        )
    )
    assert target.stat().st_blocks * 512 >= 4 * MIB
    async with face.open(target, format=format) as image:
        assert await image.content() == source.read_bytes()
