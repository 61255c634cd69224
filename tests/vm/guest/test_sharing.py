"""Conversions between files on file systems that let files share their space, and on one that does not."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Run
from tests.conftest import Qemu, pattern
from tests.face import Face
from tests.vm.guest.conftest import run

import pyimago

MIB = 1 << 20
SIZE = 24 * MIB + 512
DATA = 8 * MIB


@pytest.fixture(params=["btrfs", "xfs"])
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder where files can share space."""
    yield from scratch(request.param)


@pytest.fixture
def ext4() -> Iterator[Path]:
    """A folder where they cannot."""
    yield from scratch("ext4")


def scratch(name: str) -> Iterator[Path]:
    path = Path("/mnt", name, "test")
    path.mkdir()
    yield path
    shutil.rmtree(path)


def make(path: Path, kind: Any) -> bytes:
    """An image with data in its middle, of which a part is zeroes, and at its odd end; its content."""
    raw = path.with_suffix(".source") if kind != "raw" else path
    middle = bytearray(pattern(3, DATA))
    middle[MIB : 2 * MIB] = bytes(MIB)
    with raw.open("wb") as file:
        file.seek(4 * MIB)
        file.write(middle)
        file.seek(SIZE - 1000)
        file.write(b"e" * 1000)
    content = raw.read_bytes()
    if kind != "raw":
        pyimago.convert(raw, path, source_format="raw", format=kind, offload="off")
        raw.unlink()
    return content


def shared(path: Path) -> int:
    """Bytes of a file that another one has, too."""
    run("sync", "-f", path)
    # ext:     logical_offset:        physical_offset: length:   expected: flags:
    extent = r"^ *\d+: +\d+\.\. *\d+: +\d+\.\. *\d+: +(\d+):(.*)$"
    extents = re.findall(extent, run("filefrag", "-v", "-b1", path), re.MULTILINE)
    return sum(int(length) for length, flags in extents if "shared" in flags)


@pytest.mark.parametrize("to", ["raw", "qcow2"])
@pytest.mark.parametrize("of", ["raw", "qcow2"])
async def test_a_new_image_shares_the_space_of_its_source(
    face: Face, folder: Path, qemu: Qemu, of: Any, to: Any
) -> None:
    source, target = folder / "source", folder / "target"
    content = make(source, of)
    await face.call("convert", source, target, source_format=of, format=to)
    # What is left out by a qcow2 that is read is left out here, too: it is the source's word.
    kept = DATA if of == "raw" else DATA - MIB
    assert kept - MIB // 2 <= shared(target) <= kept + MIB // 2
    async with face.open(target, format=to, write=True) as image:
        assert await image.pread(SIZE, 0) == content
        await image.write(b"changed" * 1000, 5 * MIB)
    if to == "qcow2":
        qemu.assert_clean(target)
    async with face.open(source, format=of) as image:
        assert await image.pread(SIZE, 0) == content


@pytest.mark.parametrize(
    "options",
    [
        {"offload": "off"},
        {"sparse": 4096},
        {"sparse": 0},
        {"preallocation": "full"},
        {"preallocation": "falloc"},
        {"salvage": True},
    ],
    ids=str,
)
def test_a_new_image_has_its_own_space_where_that_is_asked_for(folder: Path, options: Any) -> None:
    source, target = folder / "source", folder / "target"
    content = make(source, "raw")
    pyimago.convert(source, target, source_format="raw", format="raw", **options)
    assert target.read_bytes() == content
    assert shared(target) == 0


def test_an_image_that_is_there_keeps_its_space(folder: Path) -> None:
    source, target = folder / "source", folder / "target"
    content = make(source, "raw")
    pyimago.create(target, SIZE, format="raw", preallocation="falloc")
    for offload in (None, "copy"):
        with pyimago.open(target, format="raw", write=True) as image:
            pyimago.convert(source, image, source_format="raw", offload=offload)
        assert target.read_bytes() == content
        # The file system shares with whoever leaves copying to the system.
        assert (shared(target) > 0) is (offload == "copy")


def test_one_layer_and_several_inputs(folder: Path, qemu: Qemu) -> None:
    base, top = folder / "base", folder / "top"
    content = bytearray(make(base, "qcow2"))
    pyimago.create(top, format="qcow2", backing=base, backing_format="qcow2")
    with pyimago.open(top, format="qcow2", write=True) as image:
        image.write(b"t" * 4 * MIB, 6 * MIB + 10)
    content[6 * MIB + 10 : 10 * MIB + 10] = b"t" * 4 * MIB
    pyimago.convert(top, folder / "flat", source_format="qcow2", format="raw")
    assert (folder / "flat").read_bytes() == content
    assert shared(folder / "flat") >= 6 * MIB
    pyimago.convert([top, base], folder / "row", source_format="qcow2", format="qcow2")
    qemu.assert_clean(folder / "row")
    assert qemu.content(folder / "row")[:SIZE] == content
    pyimago.convert(
        top, folder / "layer", source_format="qcow2", format="qcow2", backing=base, backing_format="qcow2"
    )
    qemu.assert_clean(folder / "layer")
    assert qemu.content(folder / "layer") == content


@pytest.mark.parametrize("to", ["raw", "qcow2"])
def test_offloading_beside_qemu_img(folder: Path, qemu_img: Run, pyimago_command: Run, to: Any) -> None:
    source = folder / "source"
    content = make(source, "raw")
    for tool, name in ((qemu_img, "theirs"), (pyimago_command, "ours")):
        tool("convert", "-C", "-f", "raw", "-O", to, source, folder / name)
        pyimago.convert(folder / name, folder / "back", source_format=to, format="raw")
        assert (folder / "back").read_bytes()[:SIZE] == content
        assert shared(folder / name) > DATA - MIB


def test_between_file_systems_all_is_read(folder: Path, ext4: Path) -> None:
    content = make(folder / "source", "raw")
    for offload in ("share", "copy"):
        pyimago.convert(
            folder / "source", ext4 / "target", source_format="raw", format="raw", offload=offload
        )
        assert (ext4 / "target").read_bytes() == content
        pyimago.convert(ext4 / "target", folder / "back", source_format="raw", format="raw", offload=offload)
        assert (folder / "back").read_bytes() == content


def test_where_nothing_can_be_shared_zeroes_are_looked_for(ext4: Path) -> None:
    content = make(ext4 / "source", "raw")
    pyimago.convert(ext4 / "source", ext4 / "target", source_format="raw", format="raw")
    assert (ext4 / "target").read_bytes() == content
    assert (ext4 / "target").stat().st_blocks * 512 < DATA - MIB // 2


def test_files_that_are_not_copied_on_write() -> None:
    for folder in scratch("btrfs"):
        run("chattr", "+C", folder)
        content = make(folder / "source", "raw")
        pyimago.convert(folder / "source", folder / "target", source_format="raw", format="raw")
        assert shared(folder / "target") >= DATA
        # One of both only: the file system refuses, and all is read.
        run("chattr", "-C", folder)
        pyimago.convert(folder / "source", folder / "other", source_format="raw", format="raw")
        assert shared(folder / "other") == 0
        assert (folder / "target").read_bytes() == (folder / "other").read_bytes() == content
