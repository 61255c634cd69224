"""`pyimago convert`: what it writes, QEMU reads; what goes wrong leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pyimago import open as open_image
from pyimago.cli import _progress, main

from .conftest import COMMAND, DEMO

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Run

STRACE = shutil.which("strace")
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


def access_list(user: int, permissions: int) -> bytes:
    """What `setfacl -m u:USER:...` stores on a file of mode 0640."""
    nobody = 0xFFFFFFFF
    entries = [(1, 6, nobody), (2, permissions, user), (4, 4, nobody), (16, 4, nobody), (32, 0, nobody)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def attributes(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path) if name != "security.selinux"}


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A file with extended attributes, in a folder whose new files get an access list of their own."""
    target = tmp_path / "out"
    target.write_bytes(b"of no use" * 100_000)
    try:
        os.setxattr(target, "user.owner", b"accounting")
        os.setxattr(target, "user.empty", b"")
        os.setxattr(target, "user.long", bytes(range(256)) * 8)
        os.setxattr(tmp_path, "system.posix_acl_default", access_list(4321, 6))
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    return target


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's extended attributes")
@pytest.mark.parametrize("listed", [True, False], ids=["access list", "no access list"])
@pytest.mark.parametrize(
    "words", [("convert", "guest.qcow2"), ("create", "-f", "qcow2")], ids=lambda words: words[0]
)
@pytest.mark.usefixtures("guest")
def test_a_replaced_target_keeps_its_attributes(
    pyimago: Run, labelled: Path, words: tuple[str, ...], *, listed: bool
) -> None:
    labelled.chmod(0o640)
    if listed:
        os.setxattr(labelled, "system.posix_acl_access", access_list(1234, 4))
    before, inode = attributes(labelled), labelled.stat().st_ino
    assert ("system.posix_acl_access" in before) == listed
    pyimago(*words, labelled, *(["1M"] if words[0] == "create" else []))
    assert labelled.stat().st_ino != inode
    assert attributes(labelled) == before
    assert labelled.stat().st_mode & 0o777 == 0o640


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


def disk(folder: Path, qemu_img: Run, qemu_io: Run) -> None:
    """`disk.qcow2` over the demo's `base.qcow2`: data, zeroes, holes, a snapshot, bitmaps; and `odd.raw`."""
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "disk.qcow2", "3M")
    qemu_img("bitmap", "--add", "-g", "65536", "disk.qcow2", "daily")
    qemu_io("-f", "qcow2", "-c", "write -P 7 1M 300k", "-c", "write -z 192k 128k", "disk.qcow2")
    qemu_img("snapshot", "-c", "before", "disk.qcow2")
    qemu_io("-f", "qcow2", "-c", "write -P 9 2M 64k", "-c", "write -P 0 2500k 200k", "disk.qcow2")
    qemu_img("bitmap", "--add", "--disable", "disk.qcow2", "still")
    (folder / "odd.raw").write_bytes(b"odd" * 1000 + bytes(72))


MATRIX = [
    ("-O", "raw"),
    ("-O", "qcow2"),
    ("-O", "qcow2", "-c"),
    ("-O", "qcow2", "-c", "-o", "compression_type=zstd"),
    ("-O", "qcow2", "-o", "cluster_size=4k"),
    ("-O", "qcow2", "-o", "extended_l2=on,cluster_size=128k"),
    ("-O", "qcow2", "-o", "preallocation=metadata"),
    ("-O", "qcow2", "-o", "preallocation=full"),
    ("-O", "raw", "-o", "preallocation=falloc"),
    ("-O", "raw", "-S", "0"),
    ("-O", "qcow2", "-S", "0"),
    ("-O", "qcow2", "-S", "0", "-c"),
    ("-O", "qcow2", "-S", "0", "-c", "-o", "compression_type=zstd"),
    ("-O", "raw", "-S", "64k"),
    ("-O", "raw", "-S", "512"),
    ("-O", "qcow2", "-W", "-m", "16"),
    ("-O", "raw", "-m", "1", "-r", "500M"),
    ("-O", "raw", "-C"),
    ("-O", "qcow2", "-C"),
    ("-O", "qcow2", "-l", "before"),
    ("-O", "raw", "-l", "snapshot.name=before"),
    ("-O", "raw", "-l", "snapshot.id=1"),
    ("-O", "qcow2", "-B", "base.qcow2", "-F", "qcow2"),
    ("-O", "qcow2", "-c", "-B", "base.qcow2", "-F", "qcow2"),
    ("-O", "qcow2", "-o", "backing_file=base.qcow2,backing_fmt=qcow2"),
    ("-O", "qcow2", "--bitmaps"),
    ("-O", "raw", "-U"),
    ("-O", "raw", "--salvage"),
]


@pytest.mark.parametrize("options", MATRIX, ids=" ".join)
def test_beside_qemu_img(
    options: tuple[str, ...], pyimago: Run, qemu_img: Run, qemu_io: Run, guest: Path
) -> None:
    """The same content and no more space, by the same command."""
    folder = guest.parent
    disk(folder, qemu_img, qemu_io)
    for run, out in ((pyimago, "ours"), (qemu_img, "theirs")):
        done = run("convert", "-f", "qcow2", *options, "disk.qcow2", out)
        assert (done.stdout, done.stderr) == ("", "")
    format = options[1]
    qemu_img("compare", "-f", format, "-F", format, "ours", "theirs")
    pyimago("compare", "-f", format, "-F", format, "ours", "theirs")
    ours, theirs = ((folder / out).stat() for out in ("ours", "theirs"))
    # The file system may need a block more to find as many; bitmaps are stored more than once.
    # With -C qemu-img reads all behind the first packed cluster, and finds zeroes there.
    more = {"--bitmaps": 512, "-C": 2048}.get(options[-1], 64)
    assert ours.st_blocks <= theirs.st_blocks * 1.02 + more
    if format == "qcow2":
        qemu_img("check", "-f", "qcow2", "ours")
        told = [json.loads(qemu_img("info", "--output=json", out).stdout) for out in ("ours", "theirs")]
        for one in told:
            for key in ("filename", "actual-size", "children", "full-backing-filename"):
                one.pop(key, None)
        assert told[0] == told[1]
    else:
        assert ours.st_size == theirs.st_size


@pytest.mark.parametrize("options", [(), ("-o", "compression_type=zstd")], ids=" ".join)
def test_without_looking_for_zeroes_every_cluster_is_packed(
    options: tuple[str, ...], pyimago: Run, qemu_img: Run, qemu_io: Run, guest: Path
) -> None:
    disk(guest.parent, qemu_img, qemu_io)
    held: list[set[tuple[int, bool, bool]]] = []
    for run, out in ((pyimago, "ours"), (qemu_img, "theirs")):
        run("convert", "-f", "qcow2", "-O", "qcow2", "-S", "0", "-c", *options, "disk.qcow2", out)
        extents = json.loads(qemu_img("map", "--output=json", "-f", "qcow2", out).stdout)
        held.append({(e["length"], e["data"], e["zero"]) for e in extents if not e["compressed"]})
        assert all(extent["present"] for extent in extents)
    # What packing makes no smaller is as it is.
    assert held[0] == held[1]


def test_several_inputs(pyimago: Run, qemu_img: Run, qemu_io: Run, guest: Path) -> None:
    disk(guest.parent, qemu_img, qemu_io)
    qemu_img("convert", "-O", "qcow2", "odd.raw", "odd.qcow2")
    for run, out in ((pyimago, "ours"), (qemu_img, "theirs")):
        run("convert", "odd.qcow2", "-O", "raw", "disk.qcow2", "odd.qcow2", out)
    assert (guest.parent / "ours").read_bytes() == (guest.parent / "theirs").read_bytes()


@pytest.mark.parametrize("options", [(), ("--target-is-zero",), ("-S", "0"), ("-S", "64k")], ids=" ".join)
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_into_what_is_there(
    format: str, options: tuple[str, ...], pyimago: Run, qemu_img: Run, qemu_io: Run, guest: Path
) -> None:
    disk(guest.parent, qemu_img, qemu_io)
    for run, out in ((pyimago, "ours"), (qemu_img, "theirs")):
        qemu_img("create", "-q", "-f", format, out, "4M")
        qemu_io("-f", format, "-c", "write -P 5 3500k 100k", out)
        if options != ("--target-is-zero",):
            qemu_io("-f", format, "-c", "write -P 5 0 2M", out)
        run("convert", "-n", "-O", format, *options, "disk.qcow2", out)
    qemu_img("compare", "-f", format, "-F", format, "ours", "theirs")
    if format == "qcow2":
        qemu_img("check", "-f", "qcow2", "ours")


def test_one_layer_into_what_is_there(pyimago: Run, qemu_img: Run, qemu_io: Run, guest: Path) -> None:
    disk(guest.parent, qemu_img, qemu_io)
    for run, out in ((pyimago, "ours"), (qemu_img, "theirs")):
        qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", out, "3M")
        run("convert", "-n", "-O", "qcow2", "-B", "base.qcow2", "-F", "qcow2", "disk.qcow2", out)
    qemu_img("compare", "ours", "theirs")
    qemu_img("compare", "ours", "disk.qcow2")


def test_bitmaps_are_those_of_the_source(pyimago: Run, qemu_img: Run, qemu_io: Run, guest: Path) -> None:
    disk(guest.parent, qemu_img, qemu_io)
    pyimago("convert", "-O", "qcow2", "--bitmaps", "disk.qcow2", "ours")
    with open_image(guest.parent / "disk.qcow2") as source, open_image(guest.parent / "ours") as ours:
        for name in ("daily", "still"):
            assert list(ours.bitmaps.ranges(name)) == list(source.bitmaps.ranges(name))
        assert [bitmap.flags for bitmap in ours.bitmaps.list()] == [["auto"], []]


REFUSED = [
    ("-n", "disk.qcow2", "small"),
    ("-n", "disk.qcow2", "nothere"),
    ("--target-is-zero", "disk.qcow2", "out"),
    ("-S", "100", "disk.qcow2", "out"),
    ("-S", "1G", "disk.qcow2", "out"),
    ("-m", "17", "disk.qcow2", "out"),
    ("-m", "0", "disk.qcow2", "out"),
    ("-C", "-S", "4k", "disk.qcow2", "out"),
    ("-C", "-c", "-O", "qcow2", "disk.qcow2", "out"),
    ("-C", "--salvage", "disk.qcow2", "out"),
    ("-B", "base.qcow2", "-O", "qcow2", "disk.qcow2", "out"),
    ("-B", "base.qcow2", "-F", "qcow2", "disk.qcow2", "out"),
    ("-B", "base.qcow2", "-F", "qcow2", "-O", "qcow2", "disk.qcow2", "odd.raw", "out"),
    ("-B", "none.qcow2", "-F", "qcow2", "-O", "qcow2", "disk.qcow2", "out"),
    ("-n", "-o", "cluster_size=4k", "-O", "qcow2", "disk.qcow2", "out"),
    ("--bitmaps", "disk.qcow2", "out"),
    ("--bitmaps", "-O", "qcow2", "odd.raw", "out"),
    ("--bitmaps", "-O", "qcow2", "disk.qcow2", "odd.raw", "out"),
    ("--skip-broken-bitmaps", "-O", "qcow2", "disk.qcow2", "out"),
    ("-l", "none", "disk.qcow2", "out"),
    ("-l", "before", "odd.raw", "out"),
    ("-l", "before", "disk.qcow2", "odd.raw", "out"),
    ("-c", "disk.qcow2", "out"),
    ("-c", "-o", "preallocation=full", "-O", "qcow2", "disk.qcow2", "out"),
    ("-r", "much", "disk.qcow2", "out"),
    ("--target-image-opts", "disk.qcow2", "driver=raw,file.filename=out"),
    ("-O", "vhs", "disk.qcow2", "out"),
    ("disk.qcow2",),
]


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_what_qemu_img_refuses_is_refused(
    words: tuple[str, ...], pyimago: Run, qemu_img: Run, qemu_io: Run, guest: Path
) -> None:
    """With the same status, in one line, and nothing is left."""
    folder = guest.parent
    disk(folder, qemu_img, qemu_io)
    (folder / "small").write_bytes(bytes(1024))
    before = names(folder)
    done = pyimago("convert", *words, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pyimago: ")
    assert len(done.stderr.splitlines()) == 1
    assert names(folder) == before
    assert (folder / "small").read_bytes() == bytes(1024)
    assert qemu_img("convert", *words, check=False).returncode == 1


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_standard_output(format: str, pyimago: Run, qemu_img: Run, qemu_io: Run, guest: Path) -> None:
    folder = guest.parent
    disk(folder, qemu_img, qemu_io)
    command = f"{sys.executable} -m pyimago.cli convert -p -O {format} disk.qcow2 - | cat > ours"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, timeout=60, check=True)
    assert done.stdout == b""
    qemu_img("compare", "-f", format, "-F", "qcow2", "ours", "disk.qcow2")
    if format == "qcow2":
        qemu_img("check", "-f", "qcow2", "ours")


def test_a_pipe_whose_reader_left_ends_it(guest: Path) -> None:
    command = f"set -o pipefail; {sys.executable} -m pyimago.cli convert guest.qcow2 - | true"
    done = subprocess.run(
        ["bash", "-c", command], cwd=guest.parent, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) in {(0, b""), (1, b"")}


def test_salvage_tells_what_is_lost(pyimago: Run, qemu_img: Run, guest: Path) -> None:
    folder = guest.parent
    (folder / "source.raw").write_bytes(b"some text " * 20_000)
    qemu_img("convert", "-c", "-O", "qcow2", "source.raw", "packed.qcow2")
    with (folder / "packed.qcow2").open("r+b") as file:
        file.seek(5 * 65536)
        file.write(b"\xff" * 100)
    assert pyimago("convert", "packed.qcow2", "out", check=False).returncode == 1
    done = pyimago("convert", "--salvage", "packed.qcow2", "out")
    assert done.stderr == (
        "pyimago: warning: error while reading offset 0: 65536 bytes are zeroes in the target\n"
    )
    assert (folder / "out").read_bytes()[:65536] == bytes(65536)
    assert pyimago("convert", "-q", "--salvage", "packed.qcow2", "out").stderr == ""


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_ctrl_c_and_sigterm_end_it_soon(guest: Path, format: str) -> None:
    """In the middle of a conversion that would take forever; nothing is left of it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        command: list[str] = [COMMAND, "convert", "-r", "1", "-O", format, guest.name, "out"]
        child = subprocess.Popen(command, cwd=guest.parent, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: any(".partial" in path.name for path in guest.parent.iterdir()))
        child.send_signal(number)
        child.wait(timeout=30)
        assert child.stderr is not None
        said = child.stderr.read()
        child.stderr.close()
        assert said in {"pyimago: interrupted\n", "pyimago: terminated\n"}
        assert child.returncode in {-number, 128 + number}
        assert {path.name for path in guest.parent.iterdir()} == {"base.qcow2", "guest.qcow2"}


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
@pytest.mark.parametrize(("mode", "waits"), [("unsafe", False), ("writeback", True)])
@pytest.mark.parametrize("into", [(), ("-n",)], ids=["new", "there"])
def test_unsafe_does_not_wait_for_the_medium(
    mode: str, waits: bool, into: tuple[str, ...], pyimago: Run, guest: Path
) -> None:
    with open_image(guest) as image:
        pyimago("create", "-q", "-f", "qcow2", "out", str(image.size))
    command = [str(STRACE), "-f", "-e", "trace=fsync,fdatasync", "-o", "calls", COMMAND]
    words = ["convert", "-t", mode, *into, "-O", "qcow2", str(guest), "out"]
    subprocess.run([*command, *words], cwd=guest.parent, check=True, timeout=60)
    assert ("sync(" in (guest.parent / "calls").read_text()) == waits
    assert pyimago("compare", guest, "out").returncode == 0
