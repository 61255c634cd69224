"""`pyimago dd` beside `qemu-img dd`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Run

OPERANDS = [
    ("bs=512",),
    ("bs=64k", "count=3"),
    ("bs=64k", "count=5", "skip=2"),
    ("bs=64k", "skip=3"),
    ("bs=4096", "count=10", "skip=100"),
    ("count=0",),
    ("bs=1M", "count=100", "skip=100"),
]


@pytest.mark.parametrize("operands", OPERANDS, ids=" ".join)
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_the_result_is_qemus(
    operands: tuple[str, ...], format: str, pyimago: Run, qemu_img: Run, guest: Path
) -> None:
    ours = pyimago("dd", "-f", "qcow2", "if=guest.qcow2", "-O", format, "of=ours", *operands)
    theirs = qemu_img("dd", "-f", "qcow2", "-O", format, "if=guest.qcow2", "of=theirs", *operands)
    assert ours.stderr == theirs.stderr.replace("qemu-img", "pyimago")
    assert ours.stdout == theirs.stdout == ""
    qemu_img("compare", "-s", "-f", format, "-F", format, "ours", "theirs", check=False)
    assert (
        qemu_img("compare", "-f", format, "-F", format, "ours", "theirs").stdout == "Images are identical.\n"
    )
    if format == "raw":
        assert guest.with_name("ours").read_bytes() == guest.with_name("theirs").read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ("if=guest.qcow2",),
        ("if=guest.qcow2", "of=out", "conv=notrunc"),
        ("if=guest.qcow2", "of=out", "bs=0"),
        ("if=guest.qcow2", "of=out", "bs=many"),
        ("guest.qcow2",),
    ],
    ids=" ".join,
)
def test_what_is_wrong_is_said_as_qemu_does(
    words: tuple[str, ...], pyimago: Run, qemu_img: Run, guest: Path
) -> None:
    ours, theirs = pyimago("dd", *words, check=False), qemu_img("dd", *words, check=False)
    assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr.replace("qemu-img", "pyimago"))
    assert not guest.with_name("out").exists()


def test_bytes_are_counted_not_sectors(pyimago: Run, guest: Path) -> None:
    """qemu-img rounds here, and copies other bytes than dd would."""
    pyimago("convert", "guest.qcow2", "flat")
    pyimago("dd", "if=guest.qcow2", "of=out", "bs=1000", "count=3", "skip=1")
    assert guest.with_name("out").read_bytes() == guest.with_name("flat").read_bytes()[1000:3000]
