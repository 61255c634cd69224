"""`-o help`: the options of a format, as qemu-img tells them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Run

OPTION = re.compile(r"  (\S+)=<([a-z]+(?: \(on/off\))?)> +- \S")
NOT_HERE = {"detached-header", "encryption", "extent_size_hint", "nocow"}
"""Options of QEMU's that are not there; docs/commands.md says so."""
NOT_FOR_LUKS = {"preallocation"}
OURS_ALONE = {"compression_level"}

CASES = (
    ("create", "-f", "qcow2", "-o", "help"),
    ("create", "-o", "help", "-f", "qcow2", "new.qcow2", "1M"),
    ("create", "-o", "help"),
    ("create", "-o", "size=1M,help", "new.raw"),
    ("create", "-f", "luks", "-o", "?"),
    ("create", "-f", "luks", "-o", "help", "new.luks"),
    ("convert", "-O", "qcow2", "-o", "help"),
    ("convert", "-o", "help", "guest.qcow2", "new.raw"),
    ("convert", "-c", "-o", "help", "guest.qcow2", "-O", "qcow2", "new.qcow2"),
    ("convert", "-O", "luks", "-o", "help"),
    ("amend", "-o", "help", "guest.qcow2"),
    ("amend", "-f", "qcow2", "-o", "help"),
    ("amend", "-f", "luks", "-o", "help", "not-there"),
)


def told(output: str) -> tuple[str, dict[str, str], str]:
    """The title, the kind of value of each option, and what comes behind them."""
    options, _, rest = output.partition("\n\n")
    title, *lines = options.splitlines()
    matches = [OPTION.match(line) for line in lines]
    assert all(matches), lines
    kinds = {match[1]: match[2] for match in matches if match}
    assert list(kinds) == sorted(kinds)
    return title, kinds, rest


@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_options_and_their_kinds_are_qemu_imgs(
    words: tuple[str, ...], guest: Path, pyimago: Run, qemu_img: Run
) -> None:
    title, kinds, rest = told(pyimago(*words).stdout)
    their_title, their_kinds, their_rest = told(qemu_img(*words).stdout)
    missing = NOT_HERE | (NOT_FOR_LUKS if "luks" in words else set())
    assert (title, rest) == (their_title, their_rest)
    assert {name: kind for name, kind in kinds.items() if name not in OURS_ALONE} == {
        name: kind for name, kind in their_kinds.items() if name not in missing
    }
    assert {path.name for path in guest.parent.iterdir()} == {"base.qcow2", "guest.qcow2"}


@pytest.mark.parametrize(
    "words",
    [
        ("create", "-f", "nope", "-o", "help"),
        ("convert", "-O", "nope", "-o", "help"),
        ("amend", "-f", "raw", "-o", "help"),
        ("amend", "-o", "help"),
        ("create", "-f", "qcow2"),
    ],
    ids=" ".join,
)
def test_what_has_no_options_is_refused_as_by_qemu_img(
    words: tuple[str, ...], pyimago: Run, qemu_img: Run
) -> None:
    ours, theirs = pyimago(*words, check=False), qemu_img(*words, check=False)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout) == (1, "")
    if "help" in words:
        assert ours.stderr.removeprefix("pyimago") == theirs.stderr.removeprefix("qemu-img")


def test_every_option_that_is_told_is_taken(guest: Path, pyimago: Run) -> None:
    """With a value that none can have it is refused by its name, and not for it."""
    for words in (("create", "-f", "qcow2"), ("amend", "-f", "qcow2")):
        _, kinds, _ = told(pyimago(*words, "-o", "help").stdout)
        for name, kind in kinds.items():
            if kind != "str":
                failed = pyimago(*words, "-o", f"{name}=no-such", guest, check=False)
                assert failed.returncode == 1
                assert f": {name} " in failed.stderr
