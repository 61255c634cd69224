"""Amending: the file is another, what the guest sees is not."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import MakeImage, pattern

import pyimago

if TYPE_CHECKING:
    from tests.face import Face

CONTENT = pattern(7, 1 << 20) + bytes(1 << 20)


def specific(path: Path) -> dict[str, Any]:
    found = pyimago.info(path).format_specific
    assert found is not None
    return dict(found["data"])


async def content(face: Face, path: Path) -> bytes:
    async with face.open(path, implicit="allow") as image:
        return await image.content()


async def test_version_and_refcounts_change(face: Face, make_image: MakeImage) -> None:
    path = make_image(CONTENT)
    async with face.open(path, write=True) as image:
        await image.write_zeroes(65536, 200_000)
        before = await image.content()
    told: list[tuple[int, int]] = []
    await face.call("amend", path, version=2, progress=lambda *step: told.append(step))
    assert specific(path)["compat"] == "0.10"
    assert told[-1][0] == told[-1][1] > 0
    await face.call("amend", path, format="qcow2", version="1.1", refcount_bits=1, lazy_refcounts=True)
    found = specific(path)
    assert (found["compat"], found["refcount-bits"], found["lazy-refcounts"]) == ("1.1", 1, True)
    await face.call("amend", path, lazy_refcounts=False)
    assert specific(path)["lazy-refcounts"] is False
    assert await content(face, path) == before
    subprocess.run(["qemu-img", "check", "-q", path], check=True)


@pytest.mark.parametrize("name", ["base", "with spaces and: a colon", "sub/" + "n" * 200, "not \udcff text"])
async def test_the_backing_file_changes_and_goes(
    face: Face, make_image: MakeImage, tmp_path: Path, name: str
) -> None:
    path = make_image(CONTENT)
    await face.call("amend", path, backing=name, backing_format="raw")
    found = pyimago.info(path)
    assert os.fsencode(found.backing_filename or "") == os.fsencode(name) or "\udcff" in name
    assert found.backing_filename_format == "raw"
    await face.call("amend", path, backing_format="qcow2")
    assert pyimago.info(path).backing_filename_format == "qcow2"
    await face.call("amend", path, backing=Path("elsewhere"))
    found = pyimago.info(path)
    assert (found.backing_filename, found.backing_filename_format) == ("elsewhere", None)
    await face.call("amend", path, backing=None)
    assert pyimago.info(path).backing_filename is None
    assert await content(face, path) == CONTENT


async def test_the_data_file_gets_another_name(face: Face, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    pyimago.create(path, 1 << 20, format="qcow2", data_file="data", data_file_raw=True)
    (tmp_path / "data").rename(tmp_path / "da ta")
    await face.call("amend", path, data_file="da ta", data_file_raw=False)
    found = specific(path)
    assert (found["data-file"], found["data-file-raw"]) == ("da ta", False)
    assert await content(face, path) == bytes(1 << 20)
    await face.call("amend", path, data_file=None)
    assert "data-file" not in specific(path)


async def test_the_size_changes(face: Face, make_image: MakeImage) -> None:
    path = make_image(CONTENT)
    await face.call("amend", path, size=3 << 20, refcount_bits=8)
    assert (pyimago.info(path).virtual_size, specific(path)["refcount-bits"]) == (3 << 20, 8)
    assert await content(face, path) == CONTENT + bytes(1 << 20)
    await face.call("amend", path, size=1 << 20)
    assert await content(face, path) == CONTENT[: 1 << 20]
    subprocess.run(["qemu-img", "check", "-q", path], check=True)


async def test_a_size_needs_what_the_image_names(face: Face, make_image: MakeImage, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    make_image(CONTENT, "elsewhere/base")
    (tmp_path / "here").mkdir()
    path = tmp_path / "here" / "top.qcow2"
    pyimago.create(path, format="qcow2", backing="../elsewhere/base", backing_format="qcow2")
    before = path.read_bytes()
    with pytest.raises(pyimago.ImplicitOpenDeniedError):
        await face.call("amend", path, size=4 << 20)
    assert path.read_bytes() == before
    await face.call("amend", path, size=4 << 20, implicit="allow")
    assert await content(face, path) == CONTENT + bytes(2 << 20)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"size": 1000}, ValueError, "multiples of 512"),
        ({"size": -1}, ValueError, "out of range"),
        ({"size": "1"}, TypeError, "int"),
        ({"new_secret": b"x"}, ValueError, "keyslot_state"),
        ({"keyslot_state": "on"}, ValueError, "'active' or 'inactive'"),
        ({"keyslot_state": "active"}, ValueError, "takes new_secret"),
        ({"keyslot_state": "active", "new_secret": b"x", "old_secret": b"y"}, ValueError, "old_secret goes"),
        ({"keyslot_state": "inactive"}, ValueError, "takes keyslot, old_secret or both"),
        ({"keyslot_state": "inactive", "keyslot": 1, "new_secret": b"x"}, ValueError, "go with"),
        ({"keyslot_state": "inactive", "keyslot": 1}, ValueError, "no key slots"),
        ({"version": 4}, ValueError, "version is 2"),
        ({"version": 2, "lazy_refcounts": True}, ValueError, "version 3"),
        ({"version": 2, "refcount_bits": 8}, ValueError, "16 bits only"),
        ({"refcount_bits": 3}, ValueError, "powers of two"),
        ({"refcount_bits": "8"}, TypeError, "refcount_bits is a number"),
        ({"backing": ""}, ValueError, "empty"),
        ({"backing": "x" * 1024}, ValueError, "1023"),
        ({"backing": 3}, TypeError, "path"),
        ({"backing_format": "raw"}, ValueError, "no backing file"),
        ({"backing": None, "backing_format": "raw"}, ValueError, "no backing"),
        ({"data_file": "x"}, ValueError, "no external data file"),
        ({"data_file_raw": True}, ValueError, "raw image"),
        ({"compression_type": "zstd"}, ValueError, "convert"),
        ({"cluster_size": 512}, ValueError, "convert"),
        ({"colour": "red"}, TypeError, "colour"),
    ],
)
async def test_what_cannot_be_is_refused_and_the_file_untouched(
    face: Face, make_image: MakeImage, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    path = make_image(CONTENT)
    before = path.read_bytes()
    with pytest.raises(error, match=says):
        await face.call("amend", path, **changes)
    assert path.read_bytes() == before


async def test_what_version_2_cannot_have_is_refused(face: Face, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    pyimago.create(path, 1 << 20, format="qcow2", extended_l2=True)
    before = path.read_bytes()
    with pytest.raises(pyimago.UnsupportedFeatureError, match="extended L2"):
        await face.call("amend", path, version=2)
    assert path.read_bytes() == before


async def test_an_image_in_use_is_left_alone(face: Face, make_image: MakeImage) -> None:
    path = make_image(CONTENT)
    async with face.open(path, write=True) as image:
        await image.write(b"x", 0)
        await image.flush()
        before = path.read_bytes()
        with pytest.raises(pyimago.ImageLockedError):
            await face.call("amend", path, version=2)
        assert path.read_bytes() == before


async def test_what_progress_raises_ends_it_with_the_image_as_it_was(
    face: Face, make_image: MakeImage
) -> None:
    path = make_image(CONTENT)

    def stop(done: int, total: int) -> None:
        raise KeyError(threading.current_thread().name)

    with pytest.raises(KeyError):
        await face.call("amend", path, version=2, progress=stop)
    assert specific(path)["compat"] == "1.1"
    assert await content(face, path) == CONTENT
