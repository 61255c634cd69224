"""`pyimago info` prints what `qemu-img info` prints: the same lines, the same JSON."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Run

INCOMPATIBLE_FEATURES = 72
DIRTY = 1

LAYOUTS = {
    "version 3": "compat=1.1",
    "version 2": "compat=0.10",
    "small clusters": "cluster_size=512,refcount_bits=1",
    "extended L2, zstd, lazy": "extended_l2=on,compression_type=zstd,lazy_refcounts=on,cluster_size=2M",
    "data file": "data_file=data.raw",
    "raw data file": "data_file=data.raw,data_file_raw=on",
}
SIZES = ["0", "512", "999424", "1000M", "1023M", "1536M", "3T"]


def assert_same(pyimago: Run, qemu_img: Run, *arguments: str) -> None:
    """The command and qemu-img print the same for `arguments`, to a person and as JSON."""
    assert pyimago("info", *arguments).stdout == qemu_img("info", *arguments).stdout
    json_output = ("info", "--output=json", *arguments)
    assert json.loads(pyimago(*json_output).stdout) == json.loads(qemu_img(*json_output).stdout)


@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout(options: str, pyimago: Run, qemu_img: Run) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "100M")
    assert_same(pyimago, qemu_img, "a.qcow2")
    assert_same(pyimago, qemu_img, "-f", "qcow2", "a.qcow2")


@pytest.mark.parametrize("size", SIZES)
def test_size(size: str, pyimago: Run, qemu_img: Run) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "a.qcow2", size)
    assert_same(pyimago, qemu_img, "a.qcow2")


def test_raw(pyimago: Run, qemu_img: Run) -> None:
    qemu_img("create", "-q", "-f", "raw", "a.raw", "1M")
    assert_same(pyimago, qemu_img, "a.raw")
    assert_same(pyimago, qemu_img, "-f", "raw", "a.raw")


def test_absolute_path(pyimago: Run, qemu_img: Run, guest: Path) -> None:
    assert_same(pyimago, qemu_img, str(guest))


def test_snapshots_and_bitmaps(pyimago: Run, qemu_img: Run) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "a.qcow2", "1G")
    qemu_img("snapshot", "-c", "before the upgrade", "a.qcow2")
    qemu_img("snapshot", "-c", "2", "a.qcow2")
    qemu_img("bitmap", "--add", "a.qcow2", "enabled")
    qemu_img("bitmap", "--add", "--disable", "-g", "128k", "a.qcow2", "disabled")
    assert_same(pyimago, qemu_img, "a.qcow2")


def test_not_cleanly_shut_down(pyimago: Run, qemu_img: Run, tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "a.qcow2", "1M")
    with (tmp_path / "a.qcow2").open("r+b") as image:
        image.seek(INCOMPATIBLE_FEATURES)
        image.write(struct.pack(">Q", DIRTY))
    assert_same(pyimago, qemu_img, "a.qcow2")


def test_backing_chain(pyimago: Run, qemu_img: Run, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    qemu_img("create", "-q", "-f", "raw", "below/base.raw", "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "below/middle.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "below/middle.qcow2", "-F", "qcow2", "top.qcow2")
    assert_same(pyimago, qemu_img, "top.qcow2")
    assert_same(pyimago, qemu_img, "below/middle.qcow2")
    assert_same(pyimago, qemu_img, "--backing-chain", "top.qcow2")


def test_opens_nothing_else_unless_asked(pyimago: Run, guest: Path) -> None:
    guest.with_name("base.qcow2").unlink()
    assert "backing file: base.qcow2" in pyimago("info", guest).stdout
    chain = pyimago("info", "--backing-chain", guest, check=False)
    assert chain.returncode == 1
    assert "base.qcow2" in chain.stderr
    assert len(chain.stderr.splitlines()) == 1


def test_chain_leaves_the_folder_only_when_allowed(pyimago: Run, qemu_img: Run, tmp_path: Path) -> None:
    (tmp_path / "apart").mkdir()
    qemu_img("create", "-q", "-f", "raw", "base.raw", "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "../base.raw", "-F", "raw", "apart/top.qcow2")
    denied = pyimago("info", "--backing-chain", "apart/top.qcow2", check=False)
    assert denied.returncode == 1
    assert "base.raw" in denied.stderr
    allowed = pyimago("info", "--backing-chain", "--allow-implicit", "apart/top.qcow2")
    assert "file format: raw" in allowed.stdout


def test_control_characters_are_escaped(pyimago: Run, qemu_img: Run) -> None:
    name = "two\nlines \x1b[31mred\x07 \u202e\udcff"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", "a.qcow2", "1M")
    escaped = r"backing file: two\nlines \x1b[31mred\x07 \u202e\xff"
    assert escaped in pyimago("info", "a.qcow2").stdout
    assert json.loads(pyimago("info", "--output=json", "a.qcow2").stdout)["backing-filename"] == name


def test_missing_file(pyimago: Run) -> None:
    done = pyimago("info", "nowhere.qcow2", check=False)
    assert done.returncode == 1
    assert done.stderr == "pyimago: nowhere.qcow2: No such file or directory\n"
    assert done.stdout == ""


def test_wrong_format(pyimago: Run, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"no image at all\n" * 64)
    done = pyimago("info", "-f", "qcow2", "text", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("pyimago: ")
    assert "text" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [(), ("info",), ("info", "--output=xml", "a"), ("nonsense",)])
def test_wrong_command_line(arguments: tuple[str, ...], pyimago: Run) -> None:
    done = pyimago(*arguments, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("pyimago")
    assert len(done.stderr.splitlines()) == 1
