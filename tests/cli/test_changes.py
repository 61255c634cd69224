"""`create`, `check`, `amend` and `rebase`, beside qemu-img."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Run

NEW: dict[str, tuple[str, ...]] = {
    "raw": ("image", "5M"),
    "raw, falloc": ("-f", "raw", "-o", "preallocation=falloc", "image", "1.5M"),
    "qcow2": ("-f", "qcow2", "image", "1G"),
    "version 2": ("-f", "qcow2", "-o", "compat=0.10,cluster_size=4k", "image", "10M"),
    "backing": ("-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "image"),
    "backing in options": ("-f", "qcow2", "-o", "backing_file=base.qcow2,backing_fmt=qcow2", "image", "7M"),
    "unsafe": ("-f", "qcow2", "-u", "-b", "nowhere", "-F", "raw", "image", "1M"),
    "features": (
        *("-f", "qcow2", "-o", "extended_l2=on,preallocation=metadata,lazy_refcounts=on"),
        *("-o", "refcount_bits=8,compression_type=zstd", "image", "20M"),
    ),
}


def information(run: Run, name: str) -> dict[str, Any]:
    """What qemu-img says of the image, but for the file that it is in."""
    document: dict[str, Any] = json.loads(run("info", "--output=json", name).stdout)
    for key in ("children", "actual-size"):
        document.pop(key, None)
    return document


@pytest.mark.usefixtures("guest")
@pytest.mark.parametrize("arguments", NEW.values(), ids=NEW.keys())
def test_create_makes_what_qemu_img_makes(pyimago: Run, qemu_img: Run, arguments: tuple[str, ...]) -> None:
    theirs = qemu_img("create", *arguments)
    wanted = information(qemu_img, "image")
    ours = pyimago("create", *arguments)
    assert ours.stdout == theirs.stdout
    assert information(qemu_img, "image") == wanted


FAILING: dict[str, tuple[str, ...]] = {
    "no size": ("-f", "qcow2", "image"),
    "no such size": ("image", "1x"),
    "no such backing file": ("-f", "qcow2", "-b", "nowhere", "-F", "raw", "image", "1M"),
    "backing file of no format": ("-f", "qcow2", "-b", "base.qcow2", "image"),
    "cluster size": ("-f", "qcow2", "-o", "cluster_size=1000", "image", "1M"),
    "no such option": ("-f", "qcow2", "-o", "colour=red", "image", "1M"),
    "no such format": ("-f", "bogus", "image", "1M"),
}


@pytest.mark.parametrize("arguments", FAILING.values(), ids=FAILING.keys())
def test_create_refuses_what_qemu_img_refuses(
    pyimago: Run, qemu_img: Run, guest: Path, arguments: tuple[str, ...]
) -> None:
    assert qemu_img("create", *arguments, check=False).returncode == 1
    image = guest.with_name("image")
    image.write_bytes(b"precious")
    done = pyimago("create", *arguments, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("pyimago: ")
    assert image.read_bytes() == b"precious"


def test_create_takes_secrets(pyimago: Run, qemu_img: Run, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"open sesame")
    secret = ("--object", "secret,id=s,file=key")
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    pyimago("create", "-q", *secret, "-f", "qcow2", "-o", options, "image", "1M")
    pyimago("create", "-q", *secret, "-f", "luks", "-o", "key-secret=s,iter-time=10", "disk", "1M")
    qemu_img(
        *("compare", "--object", "secret,id=s,data=open sesame", "--image-opts"),
        *("driver=qcow2,file.filename=image,encrypt.format=luks,encrypt.key-secret=s",) * 2,
    )
    assert information(qemu_img, "disk")["format"] == "luks"
    done = pyimago("create", "-f", "luks", "-o", "key-secret=t", "other", "1M", check=False)
    assert "no secret with the id 't'" in done.stderr


def set_refcount(path: Path, cluster: int, count: int) -> None:
    """Changes a refcount of 16 bits in the first block."""
    with path.open("r+b") as file:
        file.seek(48)
        file.seek(int.from_bytes(file.read(8), "big"))
        file.seek(int.from_bytes(file.read(8), "big") + 2 * cluster)
        file.write(count.to_bytes(2, "big"))


def leak(path: Path) -> None:
    """Makes the file longer by a cluster that nothing uses."""
    end = -(-path.stat().st_size // 65536)
    with path.open("r+b") as file:
        file.truncate((end + 1) * 65536)
    set_refcount(path, end, 1)


def corrupt(path: Path) -> None:
    """Takes the refcount of a cluster of data."""
    set_refcount(path, 5, 0)


@pytest.mark.parametrize("damage", ["none", "leak", "corrupt"])
def test_check_and_repair_as_qemu_img_does(
    pyimago: Run, qemu_img: Run, qemu_io: Run, tmp_path: Path, damage: str
) -> None:
    for name in ("ours", "theirs"):
        qemu_img("create", "-q", "-f", "qcow2", name, "10M")
        qemu_io("-c", "write 1M 300k", "-c", "write -c 5M 64k", name)
        if damage == "leak":
            leak(tmp_path / name)
        elif damage == "corrupt":
            corrupt(tmp_path / name)
    status = {"none": 0, "leak": 3, "corrupt": 2}[damage]
    for options in ((), ("--output=json",), ("-r", "leaks"), ("-r", "all"), ()):
        # There qemu-img gives up with an error of its own.
        if damage == "corrupt" and options == ("-r", "leaks"):
            continue
        ours = pyimago("check", *options, "ours", check=False)
        theirs = qemu_img("check", *options, "theirs", check=False)
        assert ours.returncode == theirs.returncode, options
        if options == ("--output=json",):
            ours_read, theirs_read = json.loads(ours.stdout), json.loads(theirs.stdout)
            assert ours_read | {"filename": ""} == theirs_read | {"filename": ""}
        elif not options:
            # A repaired file ends where each of them put the new refcounts.
            lines = [run.stdout.rpartition("Image end offset")[0] for run in (ours, theirs)]
            assert lines[0] == lines[1]
            assert ours.returncode == status
        if options == ("-r", "all"):
            status = 0


def test_check_of_what_cannot_be_checked(pyimago: Run, qemu_img: Run, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(1 << 20))
    for run in (pyimago, qemu_img):
        assert run("check", "-f", "raw", "raw", check=False).returncode == 63
        assert run("check", "missing", check=False).returncode == 1


@pytest.mark.usefixtures("guest")
def test_amend_changes_what_qemu_img_changes(pyimago: Run, qemu_img: Run) -> None:
    changes = ("compat=0.10", "compat=1.1", "refcount_bits=8", "lazy_refcounts=on")
    for name in ("ours", "theirs"):
        qemu_img("convert", "-O", "qcow2", "guest.qcow2", name)
    for change in changes:
        pyimago("amend", "-o", change, "ours")
        qemu_img("amend", "-o", change, "theirs")
        assert information(qemu_img, "ours") | {"filename": ""} == information(qemu_img, "theirs") | {
            "filename": ""
        }
    qemu_img("compare", "ours", "theirs")
    qemu_img("check", "ours")
    assert pyimago("amend", "ours", check=False).returncode == 1


@pytest.mark.usefixtures("guest")
def test_rebase_keeps_the_content(pyimago: Run, qemu_img: Run) -> None:
    qemu_img("convert", "-O", "raw", "guest.qcow2", "content")
    qemu_img("convert", "-O", "qcow2", "base.qcow2", "other.qcow2")
    pyimago("rebase", "-b", "other.qcow2", "-F", "qcow2", "guest.qcow2")
    assert information(qemu_img, "guest.qcow2")["backing-filename"] == "other.qcow2"
    qemu_img("compare", "-f", "qcow2", "-F", "raw", "guest.qcow2", "content")
    pyimago("rebase", "-b", "", "guest.qcow2")
    assert "backing-filename" not in information(qemu_img, "guest.qcow2")
    qemu_img("compare", "-f", "qcow2", "-F", "raw", "guest.qcow2", "content")
    pyimago("rebase", "-u", "-b", "nowhere", "-F", "raw", "guest.qcow2")
    assert information(qemu_img, "guest.qcow2")["backing-filename"] == "nowhere"


SECRETS = ("--object", "secret,id=a,data=mine", "--object", "secret,id=b,data=yours")
QUICK = "encrypt.format=luks,encrypt.key-secret=a,encrypt.iter-time=10"


def slots(run: Run, image: str, path: tuple[str, ...]) -> list[bool]:
    document = information(run, image)["format-specific"]["data"]
    for name in path:
        document = document[name]
    return [slot["active"] for slot in document["slots"]]


@pytest.mark.parametrize("kind", ["qcow2", "luks"])
def test_amend_changes_key_slots_as_qemu_img_does(pyimago: Run, qemu_img: Run, kind: str) -> None:
    prefix, path = ("encrypt.", ("encrypt",)) if kind == "qcow2" else ("", ())
    options = QUICK if kind == "qcow2" else "key-secret=a,iter-time=10"
    for name in ("ours", "theirs"):
        qemu_img("create", "-q", *SECRETS, "-f", kind, "-o", options, name, "4M")

    def both(*options: str, opens: str = "a", force: bool = False) -> None:
        spelled = ",".join(prefix + option for option in options)
        more = ("--force",) if force else ()
        image = f"driver={kind},file.filename=theirs,{prefix}key-secret={opens}"
        theirs = qemu_img("amend", *SECRETS, "-o", spelled, *more, "--image-opts", image, check=False)
        key = f"{spelled},{prefix}key-secret={opens}"
        ours = pyimago("amend", *SECRETS, "-f", kind, "-o", key, *more, "ours", check=False)
        assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout), (ours, theirs)
        assert (
            slots(qemu_img, "ours", path) == slots(qemu_img, "theirs", path) == slots(pyimago, "ours", path)
        )

    both("state=active", "new-secret=b", "iter-time=10")
    both("state=active", "new-secret=b", "keyslot=1", "iter-time=10")
    both("state=active", "new-secret=b", "keyslot=9")
    both("state=active", "new-secret=b", "old-secret=a")
    both("state=active")
    both("new-secret=b")
    both("state=inactive")
    both("state=inactive", "keyslot=5")
    both("state=inactive", "keyslot=1", "old-secret=a")
    both("state=inactive", "old-secret=a", "new-secret=b")
    both("state=inactive", "old-secret=a", opens="b")
    both("state=inactive", "old-secret=a", opens="b")
    both("state=inactive", "old-secret=b", opens="b")
    both("state=sideways", "old-secret=b", opens="b")
    assert slots(qemu_img, "ours", path) == [False, True] + 6 * [False]
    both("state=inactive", "keyslot=1", opens="b", force=True)
    assert not any(slots(qemu_img, "ours", path))


def test_amend_changes_the_size_as_qemu_img_does(pyimago: Run, qemu_img: Run) -> None:
    for name in ("ours", "theirs"):
        qemu_img("create", "-q", "-f", "qcow2", name, "4M")
    for options in ("size=8M", "size=1M,lazy_refcounts=on", "compat=0.10,size=3M", "size=1000", "size=0"):
        ours = pyimago("amend", "-f", "qcow2", "-o", options, "ours", check=False)
        theirs = qemu_img("amend", "-f", "qcow2", "-o", options, "theirs", check=False)
        assert ours.returncode == theirs.returncode, (ours, theirs)
        found = [information(qemu_img, name) for name in ("ours", "theirs")]
        assert found[0]["virtual-size"] == found[1]["virtual-size"], options
        assert found[0]["format-specific"] == found[1]["format-specific"]
    qemu_img("check", "ours")
    listed = pyimago("amend", "-f", "qcow2", "-o", "help").stdout
    assert all(name in listed for name in ("encrypt.new-secret", "encrypt.state", "size"))


def test_snapshots_are_deleted_by_name_as_qemu_img_does(pyimago: Run, qemu_img: Run) -> None:
    for run, name in ((pyimago, "ours"), (qemu_img, "theirs")):
        qemu_img("create", "-q", "-f", "qcow2", name, "4M")
        for snapshot in ("x", "1", "x", "", "y"):
            run("snapshot", "-c", snapshot, name)
        assert run("snapshot", "-d", "5", name, check=False).returncode == 1
        for snapshot in ("1", "x", ""):
            run("snapshot", "-d", snapshot, name)
        left = [(s["id"], s["name"]) for s in information(qemu_img, name)["snapshots"]]
        assert left == [("3", "x"), ("5", "y")]
