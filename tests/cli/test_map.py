"""`map` beside qemu-img, of images whose space is set aside in every way there is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Run

DATA_FILES = {
    "inside": "",
    "data file": ",data_file=data",
    "raw data file": ",data_file=data,data_file_raw=on",
}


def written(qemu_io: Run) -> None:
    """Data in several places, then zeroes and a discard, some over it."""
    for command in (
        "write -P 7 64k 10k",
        "write -P 8 1100k 70k",
        "write -P 9 2M 2k",
        "write -P 9 3500k 100k",
        "write -z 1110k 20k",
        "write -z -u 3M 256k",
        "write -z 8k 4k",
        "discard 64k 64k",
    ):
        qemu_io("-f", "qcow2", "-c", command, "image")


def compare(pyimago: Run, qemu_img: Run, folder: Path) -> None:
    """Both formats, the whole disk and a part of it."""
    for part in ((), ("--start-offset=100k", "--max-length=1500k")):
        ours = pyimago("map", "--output=json", *part, "image").stdout
        theirs = qemu_img("map", "--output=json", *part, "image").stdout
        assert json.loads(ours) == json.loads(theirs)
        assert ours == theirs
        human = pyimago("map", *part, "image").stdout.replace(f"{folder.resolve()}/", "")
        assert human == qemu_img("map", *part, "image").stdout


@pytest.mark.parametrize("data", DATA_FILES)
@pytest.mark.parametrize(
    "options",
    ["cluster_size=512", "cluster_size=64k", "cluster_size=2M", "extended_l2=on,cluster_size=64k"],
)
@pytest.mark.parametrize("preallocation", ["off", "metadata", "falloc", "full"])
def test_space_that_is_set_aside_and_holes_in_it(
    pyimago: Run, qemu_img: Run, qemu_io: Run, tmp_path: Path, preallocation: str, options: str, data: str
) -> None:
    wanted = f"preallocation={preallocation},{options}{DATA_FILES[data]}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", wanted, "image", "4M")
    compare(pyimago, qemu_img, tmp_path)
    written(qemu_io)
    compare(pyimago, qemu_img, tmp_path)


@pytest.mark.parametrize("size", ["3M", "5M"])
@pytest.mark.parametrize(
    "options", ["cluster_size=4k", "extended_l2=on", "extended_l2=on,preallocation=metadata"]
)
def test_subclusters_over_a_shorter_and_a_longer_backing_file(
    pyimago: Run, qemu_img: Run, qemu_io: Run, tmp_path: Path, options: str, size: str
) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "base", size)
    qemu_io("-f", "qcow2", "-c", "write -P 3 0 100k", "-c", "write -P 4 1M 1M", "base")
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, "-b", "base", "-F", "qcow2", "image", "4M")
    compare(pyimago, qemu_img, tmp_path)
    written(qemu_io)
    compare(pyimago, qemu_img, tmp_path)


def test_what_is_only_set_aside_is_neither_measured_nor_copied(pyimago: Run, qemu_img: Run) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "image", "64M")
    for target in ("qcow2", "raw"):
        arguments = ("measure", "--output=json", "-O", target, "image")
        assert json.loads(pyimago(*arguments).stdout) == json.loads(qemu_img(*arguments).stdout)
    pyimago("convert", "-O", "qcow2", "image", "copy")
    (extent,) = json.loads(qemu_img("map", "--output=json", "copy").stdout)
    assert extent["present"] is False
    assert pyimago("compare", "image", "copy").stdout == "Images are identical.\n"


def test_what_is_encrypted_is_no_zero_where_the_file_has_a_hole(
    pyimago: Run, qemu_img: Run, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("secret")
    secret = ("--object", "secret,id=s,file=key")
    options = "preallocation=metadata,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    qemu_img("create", "-q", "-f", "qcow2", *secret, "-o", options, "image", "4M")
    named = ("--image-opts", "driver=qcow2,file.filename=image,encrypt.key-secret=s")
    ours = pyimago("map", "--output=json", *secret, *named).stdout
    assert ours == qemu_img("map", "--output=json", *secret, *named).stdout
    assert [extent["zero"] for extent in json.loads(ours)] == [False]
