"""`pyimago convert`: what it writes, QEMU reads; what goes wrong leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import signal
from typing import TYPE_CHECKING

import pytest

from pyimago.cli import _convert, main

from .conftest import DEMO

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Run

CONTENT = (DEMO / "SHA256SUMS").read_text().split()[0]

TARGETS: dict[str, tuple[str, ...]] = {
    "raw": ("-O", "raw"),
    "qcow2": ("-O", "qcow2"),
    "version 2": ("-O", "qcow2", "-o", "compat=0.10"),
    "small clusters": ("-O", "qcow2", "-o", "cluster_size=512,refcount_bits=8"),
    "big clusters": ("-O", "qcow2", "-o", "cluster_size=2M", "-o", "refcount_bits=64"),
}


def names(folder: Path) -> set[str]:
    """What is in `folder`, hidden files too."""
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("options", TARGETS.values(), ids=TARGETS.keys())
def test_qemu_reads_the_same(options: tuple[str, ...], pyimago: Run, qemu_img: Run, guest: Path) -> None:
    assert pyimago("convert", *options, guest, "out").stdout == ""
    assert names(guest.parent) == {"base.qcow2", "guest.qcow2", "out"}
    qemu_img("compare", "-f", "qcow2", "-F", options[1], guest, "out")
    if options[1] == "qcow2":
        qemu_img("check", "-f", "qcow2", "out")


def test_options_reach_the_image(pyimago: Run, qemu_img: Run, guest: Path) -> None:
    pyimago("convert", "-O", "qcow2", "-o", "cluster_size=4k,compat=v3,refcount_bits=32", guest, "out")
    information = json.loads(qemu_img("info", "--output=json", "out").stdout)
    assert information["cluster-size"] == 4096
    assert information["format-specific"]["data"]["refcount-bits"] == 32
    assert information["format-specific"]["data"]["compat"] == "1.1"


def test_content_is_the_guests(pyimago: Run, guest: Path) -> None:
    pyimago("convert", guest, "out")
    assert hashlib.sha256((guest.parent / "out").read_bytes()).hexdigest() == CONTENT


def test_progress(pyimago: Run, guest: Path) -> None:
    *_, last = pyimago("convert", "-p", guest, "out").stdout.splitlines()
    assert last == "    (100.00/100%)"
    assert pyimago("convert", "-p", "-q", guest, "out").stdout == ""


def test_replaces_a_target_and_keeps_its_mode(pyimago: Run, guest: Path) -> None:
    target = guest.with_name("out")
    target.write_bytes(b"of no use" * 100_000)
    target.chmod(0o640)
    pyimago("convert", guest, "out")
    assert hashlib.sha256(target.read_bytes()).hexdigest() == CONTENT
    assert target.stat().st_mode & 0o777 == 0o640


def test_failure_leaves_the_target_alone(pyimago: Run, guest: Path) -> None:
    guest.with_name("base.qcow2").unlink()
    target = guest.with_name("out")
    target.write_bytes(b"precious")
    done = pyimago("convert", guest, "out", check=False)
    assert done.returncode == 1
    assert "base.qcow2" in done.stderr
    assert target.read_bytes() == b"precious"
    assert names(guest.parent) == {"guest.qcow2", "out"}


def test_missing_target_folder_is_named(pyimago: Run, guest: Path) -> None:
    done = pyimago("convert", guest, "nowhere/out", check=False)
    assert done.returncode == 1
    assert done.stderr == "pyimago: nowhere/out: No such file or directory\n"


def test_ctrl_c_leaves_nothing(guest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real signal, in the middle of the conversion."""
    monkeypatch.setattr(_convert, "_show", lambda _done, _total: signal.raise_signal(signal.SIGINT))
    assert main(["convert", "-p", str(guest), str(guest.with_name("out"))]) == 130
    assert names(guest.parent) == {"base.qcow2", "guest.qcow2"}


@pytest.mark.parametrize(
    "options", ["cluster_size=many", "cluster_size=", "colour=red", "compat=3", "refcount_bits=-1"]
)
def test_wrong_option(options: str, pyimago: Run, guest: Path) -> None:
    done = pyimago("convert", "-O", "qcow2", "-o", options, guest, "out", check=False)
    assert done.returncode == 1
    assert options.split("=", maxsplit=1)[0] in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not guest.with_name("out").exists()


def test_wrong_cluster_size_is_the_library_s_word(pyimago: Run, guest: Path) -> None:
    done = pyimago("convert", "-O", "qcow2", "-o", "cluster_size=3k", guest, "out", check=False)
    assert done.returncode == 1
    assert "3072" in done.stderr
    assert names(guest.parent) == {"base.qcow2", "guest.qcow2"}
