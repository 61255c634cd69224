"""`pyimago convert`: what it writes, QEMU reads; what goes wrong leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pyimago.cli import _progress, main

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
    "compressed": ("-O", "qcow2", "-c"),
    "compressed with zstd": ("-O", "qcow2", "-c", "-o", "compression_type=zstd"),
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


def test_compressed_is_small(pyimago: Run, guest: Path) -> None:
    pyimago("convert", "-O", "qcow2", guest, "plain")
    pyimago("convert", "-c", "-O", "qcow2", guest, "packed")
    assert guest.with_name("packed").stat().st_size < guest.with_name("plain").stat().st_size * 0.9


def test_a_raw_target_cannot_be_compressed(pyimago: Run, guest: Path) -> None:
    done = pyimago("convert", "-c", guest, "out", check=False)
    assert (done.returncode, done.stderr) == (1, "pyimago: raw has no compressed clusters\n")
    assert not guest.with_name("out").exists()


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
    monkeypatch.setattr(_progress.Meter, "__call__", lambda *_: signal.raise_signal(signal.SIGINT))
    assert main(["convert", "-p", str(guest), str(guest.with_name("out"))]) == 130
    assert names(guest.parent) == {"base.qcow2", "guest.qcow2"}


def test_ctrl_c_while_the_target_becomes_durable(guest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last chunk; what was at the target stays."""

    def interrupt(_: object, done: int, total: int) -> None:
        if done == total:
            signal.raise_signal(signal.SIGINT)

    guest.with_name("out").write_bytes(b"precious")
    monkeypatch.setattr(_progress.Meter, "__call__", interrupt)
    assert main(["convert", "-p", str(guest), str(guest.with_name("out"))]) == 130
    assert guest.with_name("out").read_bytes() == b"precious"
    assert names(guest.parent) == {"base.qcow2", "guest.qcow2", "out"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_leave_nothing_either(
    guest: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    monkeypatch.setattr(_progress.Meter, "__call__", lambda *_: signal.raise_signal(number))
    assert main(["convert", "-p", str(guest), str(guest.with_name("out"))]) == 128 + number
    assert names(guest.parent) == {"base.qcow2", "guest.qcow2"}
    assert signal.getsignal(number) == before


def test_a_missing_backing_file_says_whose_it_is(pyimago: Run, guest: Path) -> None:
    guest.with_name("base.qcow2").unlink()
    done = pyimago("convert", "guest.qcow2", "out", check=False)
    assert "No such file" in done.stderr
    assert 'backing file "base.qcow2" of "guest.qcow2"' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_refused_backing_file_is_named_once_with_the_way_out(pyimago: Run, guest: Path) -> None:
    (guest.parent / "base.qcow2").rename(guest.parent.parent / f"{guest.parent.name}.base")
    (guest.parent / "base.qcow2").symlink_to(f"../{guest.parent.name}.base")
    done = pyimago("convert", "guest.qcow2", "out", check=False)
    assert done.returncode == 1
    assert done.stderr.count("base.qcow2") == 1
    assert done.stderr.endswith("(--allow-implicit)\n")
    pyimago("convert", "--allow-implicit", "guest.qcow2", "out")


def test_a_full_medium_names_the_target(guest: Path) -> None:
    command = f"ulimit -f 100; exec {sys.executable} -m pyimago.cli convert guest.qcow2 out"
    done = subprocess.run(
        ["bash", "-c", command], cwd=guest.parent, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (1, "pyimago: out: File too large\n")
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
