"""`snapshot`, `bitmap` and `resize`, beside qemu-img."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Run


@pytest.fixture
def image(tmp_path: Path, qemu_img: Run, qemu_io: Run) -> Path:
    """An image with some data."""
    qemu_img("create", "-q", "-f", "qcow2", "image", "10M")
    qemu_io("-c", "write -P 1 1M 300k", "image")
    return tmp_path / "image"


def bitmaps(run: Run) -> Any:
    document = json.loads(run("info", "--output=json", "image").stdout)
    return document["format-specific"]["data"].get("bitmaps", [])


def test_snapshots_as_qemu_img_has_them(pyimago: Run, qemu_img: Run, qemu_io: Run, image: Path) -> None:
    assert pyimago("snapshot", "-c", "first", image).stdout == ""
    qemu_io("-c", "write -P 2 1M 300k", "image")
    pyimago("snapshot", "-c", "second", image)
    clock = re.compile(r"\d{4}-\d\d-\d\d.*")
    ours, theirs = (clock.sub("", run("snapshot", "-l", "image").stdout) for run in (pyimago, qemu_img))
    assert ours == theirs
    assert pyimago("snapshot", image).stdout == pyimago("snapshot", "-l", image).stdout
    pyimago("snapshot", "-a", "first", image)
    qemu_io("-c", "read -P 1 1M 300k", "image")
    pyimago("snapshot", "--rename", "first", "third", image)
    pyimago("snapshot", "-d", "second", image)
    (left,) = json.loads(pyimago("snapshot", "-l", "--output=json", image).stdout)
    assert (left["id"], left["name"]) == ("1", "third")
    qemu_img("check", "image")
    done = pyimago("snapshot", "-d", "nothing", image, check=False)
    assert done.returncode == 1
    assert "nothing" in done.stderr


def test_bitmaps_as_qemu_img_changes_them(pyimago: Run, qemu_img: Run, qemu_io: Run, image: Path) -> None:
    pyimago("bitmap", "--add", image, "daily")
    pyimago("bitmap", "--add", "-g", "1M", "--disable", image, "old")
    assert bitmaps(qemu_img) == [
        {"flags": ["auto"], "name": "daily", "granularity": 65536},
        {"flags": [], "name": "old", "granularity": 1 << 20},
    ]
    qemu_io("-c", "write 5M 64k", "image")
    pyimago("bitmap", "--merge", "daily", image, "old")
    pyimago("bitmap", "--clear", "--disable", image, "daily")
    pyimago("bitmap", "--remove", image, "daily")
    assert [bitmap["name"] for bitmap in bitmaps(qemu_img)] == ["old"]
    qemu_img("check", "image")
    for wrong in (("--remove", "image", "missing"), ("--add", "image", "old"), ("image", "old")):
        assert pyimago("bitmap", *wrong, check=False).returncode == 1
        assert qemu_img("bitmap", *wrong, check=False).returncode == 1


@pytest.mark.usefixtures("image")
def test_resize_as_qemu_img_does(pyimago: Run, qemu_img: Run, qemu_io: Run) -> None:
    for size, length in (("20M", 20 << 20), ("+1G", (20 << 20) + (1 << 30)), ("1.5M", 3 << 19)):
        shrink = ("--shrink",) if size == "1.5M" else ()
        assert pyimago("resize", *shrink, "image", size).stdout == "Image resized.\n"
        assert json.loads(qemu_img("info", "--output=json", "image").stdout)["virtual-size"] == length
        qemu_img("check", "image")
    assert pyimago("resize", "-q", "--shrink", "image", "-512k").stdout == ""
    qemu_io("-c", "read -P 0 0 1M", "image")
    for refused in (("image", "512k"), ("--shrink", "image", "-1M"), ("image", "1x"), ("image", "0")):
        before = qemu_img("info", "--output=json", "image").stdout
        assert pyimago("resize", *refused, check=False).returncode == 1
        assert qemu_img("info", "--output=json", "image").stdout == before
