"""`compare`, `map`, `measure` and `hash`, beside qemu-img where it has them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pyimago.cli._text import parse_size

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Run


@pytest.fixture
def images(tmp_path: Path, qemu_img: Run, qemu_io: Run, guest: Path) -> Path:
    """A folder with images of the same and of other content and size, and one over a backing file."""
    qemu_img("convert", "-f", "qcow2", "-O", "raw", guest, "same.raw")
    qemu_img("convert", "-f", "qcow2", "-O", "qcow2", "-o", "cluster_size=4k", guest, "same.qcow2")
    qemu_img("convert", "-f", "qcow2", "-O", "qcow2", guest, "other.qcow2")
    qemu_io("-f", "qcow2", "-c", "write -P 7 100k 512", "other.qcow2")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", guest, "longer.raw")
    qemu_img("resize", "-q", "-f", "raw", "longer.raw", "+1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "other.qcow2", "-F", "qcow2", "top.qcow2", "4M")
    qemu_io(
        "-f", "qcow2", "-c", "write 200k 100k", "-c", "write -z 1M 128k", "-c", "write 3M 4k", "top.qcow2"
    )
    return tmp_path


NAMES = ["same.raw", "same.qcow2", "other.qcow2", "longer.raw", "top.qcow2"]


@pytest.mark.parametrize("strict", [(), ("-s",)], ids=["content", "strict"])
@pytest.mark.usefixtures("images")
def test_compare_says_what_qemu_img_says(pyimago: Run, qemu_img: Run, strict: tuple[str, ...]) -> None:
    for first in NAMES:
        for second in NAMES:
            ours = pyimago("compare", *strict, first, second, check=False)
            theirs = qemu_img("compare", *strict, first, second, check=False)
            assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr), (first, second)
            # Where the status of two raw files differs first is told apart, see the engine's test.
            if "block status" not in theirs.stdout:
                assert ours.stdout == theirs.stdout, (first, second)


@pytest.mark.usefixtures("images")
def test_a_comparison_that_fails_is_no_difference(pyimago: Run, qemu_img: Run) -> None:
    arguments = ("compare", "same.raw", "missing")
    ours, theirs = pyimago(*arguments, check=False), qemu_img(*arguments, check=False)
    assert ours.returncode == theirs.returncode == 2
    assert ours.stderr == "pyimago: missing: No such file or directory\n"


@pytest.mark.parametrize("names", [("same.raw", "same.qcow2"), ("same.raw", "other.qcow2")])
@pytest.mark.usefixtures("images")
def test_the_verdict_stands_where_qemu_img_puts_it(
    pyimago: Run, qemu_img: Run, names: tuple[str, str]
) -> None:
    ours = pyimago("compare", "-p", *names, check=False)
    theirs = qemu_img("compare", "-p", *names, check=False)
    assert (ours.returncode, last_line(ours.stdout)) == (theirs.returncode, last_line(theirs.stdout))


def last_line(text: str) -> str:
    """What is behind the last percentage, whose carriage return the runner has made a line's end of."""
    return text.rpartition("100%)\n")[2]


def test_quiet_compares_in_silence(pyimago: Run, images: Path) -> None:
    done = pyimago("compare", "-q", "-p", images / "same.raw", images / "other.qcow2", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.parametrize("name", ["guest.qcow2", "same.qcow2", "same.raw", "top.qcow2", "other.qcow2"])
@pytest.mark.parametrize("part", [(), ("--start-offset=100k", "--max-length=1.5M")], ids=["whole", "part"])
def test_map_prints_what_qemu_img_prints(
    pyimago: Run, qemu_img: Run, images: Path, name: str, part: tuple[str, ...]
) -> None:
    ours = pyimago("map", "--output=json", *part, name)
    theirs = qemu_img("map", "--output=json", *part, name)
    assert json.loads(ours.stdout) == json.loads(theirs.stdout)
    assert ours.stdout == theirs.stdout
    ours = pyimago("map", *part, name, check=False)
    theirs = qemu_img("map", *part, name, check=False)
    # A backing file is told by the place where it was found.
    lines = ours.stdout.replace(f"{images.resolve()}/", "")
    assert (ours.returncode, lines) == (theirs.returncode, theirs.stdout)
    assert ours.stderr == theirs.stderr.replace("qemu-img", "pyimago")


@pytest.mark.parametrize("output", ["human", "json"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("--size=1G",),
        ("-O", "qcow2", "--size", "10.5G"),
        ("-O", "qcow2", "-o", "cluster_size=4k,refcount_bits=1", "same.raw"),
        ("-O", "qcow2", "-o", "extended_l2=on", "top.qcow2"),
        ("-O", "raw", "top.qcow2"),
    ],
)
@pytest.mark.usefixtures("images")
def test_measure_prints_what_qemu_img_prints(
    pyimago: Run, qemu_img: Run, arguments: tuple[str, ...], output: str
) -> None:
    ours = pyimago("measure", f"--output={output}", *arguments).stdout
    theirs = qemu_img("measure", f"--output={output}", *arguments).stdout
    if output == "json":
        assert json.loads(ours) == json.loads(theirs)
    else:
        assert ours == theirs


@pytest.mark.usefixtures("images")
def test_hash_tells_content_from_other_content(pyimago: Run) -> None:
    lines = pyimago("hash", *NAMES).stdout.splitlines()
    assert [pyimago("hash", name).stdout for name in NAMES] == [f"{line}\n" for line in lines]
    hashes = {name: line.split() for name, line in zip(NAMES, lines, strict=True)}
    assert [name for _, name in hashes.values()] == NAMES
    assert hashes["same.raw"][0] == hashes["same.qcow2"][0]
    assert len({digest for digest, _ in hashes.values()}) == len(NAMES) - 1


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *[
            ("0", 0),
            ("512", 512),
            ("1k", 1024),
            ("1.5M", 3 << 19),
            ("0x10", 16),
            ("2T", 2 << 40),
            ("7E", 7 << 60),
        ],
        *[("+1M", 1 << 20), (" 1M", 1 << 20), (".5k", 512), ("1.", 1), ("1.0b", 1), ("0.0009765625k", 1)],
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k",
        "-1",
        "1kk",
        "1e3",
        "0x",
        "\uff18",
        "8E",
        "1 k",
        "nan",
        "1_0",
        "1.5",
        "1.5b",
        ".k",
        "+-1",
        "1k ",
    ],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|too much"):
        parse_size(text)
