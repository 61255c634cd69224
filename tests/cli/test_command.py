"""The command as a whole: its version, its start, its text."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
from tests.cli.conftest import COMMAND, runner

from pyimago.cli import _text

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Run


def test_version(pyimago: Run) -> None:
    assert pyimago("--version").stdout == f"pyimago {version('pyimago')}\n"


def test_who_asks_qemu_img_for_its_version_gets_an_answer(tmp_path: Path) -> None:
    link = tmp_path / "qemu-img"
    link.symlink_to(COMMAND)
    assert runner(str(link), tmp_path)("--version").stdout.startswith("qemu-img version 10.0.0 (pyimago ")


@pytest.mark.parametrize("trace", [("-T", "bdrv_*"), ("--trace", "enable=x"), ("--trace=x",), ("-Tx",)])
def test_what_to_trace_is_taken_and_changes_nothing(trace: tuple[str, ...], pyimago: Run) -> None:
    assert pyimago(*trace, "measure", "--size", "1M").stdout.startswith("required size: ")


def test_help_names_the_commands(pyimago: Run) -> None:
    text = pyimago("--help").stdout
    assert "info" in text
    assert "convert" in text


def test_a_command_that_is_not_there_is_told_from_one_that_was_meant(pyimago: Run) -> None:
    done = pyimago("conver", check=False)
    assert done.returncode == 1
    assert done.stderr == "pyimago: no command 'conver', did you mean 'convert'?; see `pyimago --help`\n"
    assert "did you mean" not in pyimago("xyz", check=False).stderr


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from pyimago.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'asyncio', 'importlib.metadata', 'json'} & sys.modules.keys()))"
    )
    output = subprocess.check_output([sys.executable, "-c", program], text=True, timeout=60)
    assert output.splitlines()[-1] == "[]"


def test_reader_that_leaves_is_no_traceback(guest: Path) -> None:
    command = f"{sys.executable} -m pyimago.cli info {guest} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert done.stdout.strip() in {"0", "1"}


@pytest.mark.parametrize("arguments", ["--version", "info {}", "info --output=json {}"])
def test_stdout_that_takes_nothing_is_no_traceback(guest: Path, arguments: str) -> None:
    command = f"{sys.executable} -m pyimago.cli {arguments.format(guest)}"
    done = subprocess.run(
        ["bash", "-c", f"{command} >&-; echo $? >&2; {command} >/dev/full; echo $? >&2"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == "0\npyimago: No space left on device\n1\n"


def test_stdout_without_the_letters_of_a_name(guest: Path) -> None:
    name = guest.rename(guest.with_name("nö.qcow2"))
    done = subprocess.run(
        [sys.executable, "-m", "pyimago.cli", "info", name],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert r"n\xf6.qcow2" in done.stdout


@pytest.mark.parametrize("words", [("info",), ("info", "x"), ("hash",), ("check",), ("map", "--picture=")])
def test_a_name_cannot_play_with_the_terminal(pyimago: Run, words: tuple[str, ...]) -> None:
    done = pyimago(*words, "\x1b[31m\n", check=False)
    assert done.returncode == 1
    assert "\x1b" not in done.stdout + done.stderr
    assert "\\x1b[31m\\n" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_empty_name_is_visible(pyimago: Run) -> None:
    assert pyimago("info", "", check=False).stderr == "pyimago: '': No such file or directory\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1024, "1 KiB"),
        (1_023_999, "1e+03 KiB"),
        (1 << 40, "1 TiB"),
        ((1 << 63) - 1, "8 EiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert _text.size(count) == text


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "No such file", "a\nb"), r"a\nb: No such file"),
        (PermissionError(13, "Not allowed", b"\xff"), r"\xff: Not allowed"),
        (OSError("without a number"), "without a number"),
        (_text.UsageError("no\x1bsuch"), r"no\x1bsuch"),
        (KeyError("a defect"), None),
    ],
)
def test_describe(error: Exception, line: str | None) -> None:
    assert _text.describe(error) == line
