"""How words become options: as for qemu-img, which says whether each of these is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Run

TUNING = {
    "node-name": ["=a", "=1a", "=a/b", "", "=" + "a" * 32],
    "read-only": ["", "=x"],
    "noread-only": [""],
    "noforce-share": [""],
    "auto-read-only": ["=on", "=x"],
    "discard": ["=unmap", "=ignore", "=x"],
    "discard=unmap,detect-zeroes": ["=unmap", "=off"],
    "detect-zeroes": ["=on", "=unmap", "=x"],
    "cache.no-flush": ["=on", "=x"],
    "cache.writeback": ["=on"],
    "cache-clean-interval": ["=5", "=5k", "=-1", "=99999999999999"],
    "cache-size": ["=1M", "=x", "=1M,l2-cache-size=2M", "=1M,l2-cache-size=64k,refcount-cache-size=64k"],
    "l2-cache-size": ["=1M", "=x"],
    "refcount-cache-size": ["=1M", "=-1"],
    "l2-cache-entry-size": ["=4k", "=100", "=8M"],
    "lazy-refcounts": ["=on", "=x"],
    "discard-no-unref": ["=off", "=x"],
    "overlap-check": ["=all", "=x", ".template=cached", ".template=x", ".main-header=on", ".main-header=x"],
    "overlap-check.nothing": ["=on"],
    "pass-discard-other": ["=on", "=5"],
    "pass-discard-request": ["=x"],
    "pass-discard-snapshot": ["=x"],
    "file.aio": ["=threads", "=native", "=x"],
    "file.cache.direct=on,file.aio": ["=native"],
    "file.aio-max-batch": ["=5", "=x"],
    "file.drop-cache": ["=on", "=x"],
    "file.locking": ["=off", "=x"],
    "file.node-name": ["=1"],
}


@pytest.fixture
def image(tmp_path: Path, qemu_img: Run) -> str:
    """The name of an empty image."""
    qemu_img("create", "-q", "-f", "qcow2", "image", "1M")
    return (tmp_path / "image").name


@pytest.mark.parametrize("name", TUNING)
def test_what_only_tunes_qemu_is_checked_as_there(pyimago: Run, qemu_img: Run, image: str, name: str) -> None:
    for value in TUNING[name]:
        words = ("info", "--image-opts", f"driver=qcow2,file.filename={image},{name}{value}")
        ours, theirs = (run(*words, check=False) for run in (pyimago, qemu_img))
        assert ours.returncode == theirs.returncode, (value, ours.stderr, theirs.stderr)
        if ours.returncode == 0:
            assert ours.stdout == theirs.stdout
    # What opens all of the image reads the options in another place.
    for value in TUNING[name]:
        options = f"driver=qcow2,file.filename={image},{name}{value}"
        ours, theirs = (
            run("map", "--output=json", "--image-opts", options, check=False) for run in (pyimago, qemu_img)
        )
        assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout), (value, ours.stderr)


@pytest.mark.parametrize(
    "words",
    [
        ("info", "-f=qcow2", "image"),
        ("info", "-Uf=qcow2", "image"),
        ("info", "-Ufqcow2", "image"),
        ("info", "--format=qcow2", "image"),
        ("info", "-U=1", "image"),
        ("create", "-q", "-f=raw", "new", "1M"),
        ("create", "-q", "-f", "qcow2", "-o", "nolazy_refcounts,extended_l2,nodata_file_raw", "new", "1M"),
        ("create", "-q", "-f", "qcow2", "-o", "nocluster_size", "new", "1M"),
        ("create", "-q", "-f", "qcow2", "-o", "nonsense", "new", "1M"),
        ("create", "-q", "-f", "qcow2", "-o", "no", "new", "1M"),
        ("measure", "-O", "qcow2", "-o", "noextended_l2", "--size", "1M"),
        ("amend", "-o", "nolazy_refcounts", "image"),
        ("info", "--object", "id=s,qom-type=secret,data=x", "image"),
        ("info", "--object", "secret,id=s,data", "image"),
        ("info", "--object", "secret,id=s,data=x,qom-type=nothing", "image"),
        ("info", "--object", '{"help": 1}', "image"),
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("image")
def test_words_are_taken_apart_as_by_qemu_img(pyimago: Run, qemu_img: Run, words: tuple[str, ...]) -> None:
    ours, theirs = (run(*words, check=False) for run in (pyimago, qemu_img))
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout), (ours.stderr, theirs.stderr)


@pytest.mark.parametrize(
    "words", [("help",), ("?", "image"), ("secret,help",), ("secret,id=s,help", "image")]
)
def test_what_objects_there_are_is_told_and_nothing_done(
    pyimago: Run, qemu_img: Run, words: tuple[str, ...]
) -> None:
    ours, theirs = (run("info", "--object", *words).stdout.splitlines() for run in (pyimago, qemu_img))
    assert ours[0] == theirs[0]
    assert len(ours) > 1
    assert set(ours) <= set(theirs)


def test_an_image_that_is_named_twice_is_told_so(pyimago: Run, image: str) -> None:
    done = pyimago("convert", "-n", "-O", "qcow2", image, image, check=False)
    assert done.returncode == 1
    assert "this very process has it open already" in done.stderr
    assert "was it named twice?" in done.stderr
