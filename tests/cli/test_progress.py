"""How far a long command is, at a terminal and elsewhere; and how it ends when somebody ends it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Run

LONG = {
    "amend": ("amend", "-o", "compat=0.10", "guest.qcow2"),
    "bench": ("bench", "-c", "1000", "same.qcow2"),
    "check": ("check", "-r", "all", "guest.qcow2"),
    "commit": ("commit", "guest.qcow2"),
    "compare": ("compare", "guest.qcow2", "same.qcow2"),
    "convert": ("convert", "-O", "qcow2", "guest.qcow2", "out.qcow2"),
    "dd": ("dd", "bs=1M", "if=guest.qcow2", "of=out"),
    "create": ("create", "-f", "qcow2", "-o", "preallocation=full", "new.qcow2", "8M"),
    "hash": ("hash", "guest.qcow2"),
    "map": ("map", "--output=json", "guest.qcow2"),
    "map --picture": ("map", "--picture", "guest.qcow2"),
    "measure": ("measure", "-O", "qcow2", "guest.qcow2"),
    "rebase": ("rebase", "-b", "", "guest.qcow2"),
    "resize": ("resize", "--preallocation=full", "same.qcow2", "+8M"),
    "resize --shrink": ("resize", "--shrink", "same.qcow2", "256k"),
}
KEEPS = {"resize", "resize --shrink"}
"""Ended ones leave a sound image that is not the old one: some space is set aside, or not all given back."""
SAYS_FIRST = {"bench", "map"}
"""Those of which a part is told before all is done."""
LINE = re.compile(r"    \(\d+\.\d\d/100%\)")
SIGNALLED = """
import signal, sys
from pyimago.cli import _progress, main

call, calls = _progress.Meter.__call__, 0

def signalled(self, done, total):
    global calls
    calls += 1
    if calls == 1:
        signal.raise_signal({number})
    call(self, done, total)

_progress.Meter.__call__ = signalled
_progress.UNASKED_AFTER = 0
sys.argv[0] = "pyimago"
sys.exit(main())
"""
"""The command, which gets a signal when it has begun its work."""


AT_ITS_START = """
import signal, sys
from pyimago import cli

split = cli._split

def signalled(words):
    signal.raise_signal(signal.SIGUSR1)
    return split(words)

cli._split = signalled
sys.exit(cli.main())
"""
"""The command, which gets SIGUSR1 before it has any answer."""


@pytest.fixture
def folder(pyimago: Run, guest: Path) -> Path:
    """With images for each command of `LONG`."""
    pyimago("convert", "-O", "qcow2", guest, "same.qcow2")
    return guest.parent


def terminal(folder: Path, command: list[str], **environment: str) -> tuple[str, int]:
    """What `command` writes on a terminal of 24 lines and 80 columns, and its status."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(
        command,
        cwd=folder,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": "", **environment},
    ) as process:
        os.close(follower)
        written = b""
        try:
            while block := os.read(leader, 65536):
                written += block
        except OSError:  # Linux's end of a terminal
            pass
        os.close(leader)
    return written.decode(), process.returncode


def on_terminal(folder: Path, *words: str, **environment: str) -> str:
    written, status = terminal(folder, [sys.executable, "-m", "pyimago.cli", *words], **environment)
    assert status == 0, written
    return written


def signalled(number: signal.Signals) -> list[str]:
    return [sys.executable, "-c", SIGNALLED.format(number=int(number))]


@pytest.mark.parametrize("words", LONG.values(), ids=LONG)
def test_a_bar_on_a_terminal_stays_where_it_was_asked_for(folder: Path, words: tuple[str, ...]) -> None:
    written = on_terminal(folder, words[0], "-p", *words[1:])
    bars = [text for text in written.split("\r") if text.startswith(f"{words[0]} 100% |")]
    assert bars
    assert "\x1b[32m" in bars[-1]
    assert re.search(r"\| (\S+ \w*B) of \1  \S+ \w*B?/s  in \d\d:\d\d", bars[-1])
    assert not LINE.search(written)


@pytest.mark.parametrize("words", LONG.values(), ids=LONG)
def test_a_bar_that_nobody_asked_for_is_wiped(folder: Path, words: tuple[str, ...]) -> None:
    """SIGURG, which does nothing."""
    written, status = terminal(folder, [*signalled(signal.SIGURG), *words])
    assert status == 0
    assert f"{words[0]}   0% |" in written
    after_the_last_bar = written[written.rindex("/s") :]
    assert re.match(r"/s  [^|]*(\x1b\[0m)?\r {60,}\r", after_the_last_bar)


def test_a_short_command_shows_no_bar_unless_asked(folder: Path) -> None:
    assert "%" not in on_terminal(folder, *LONG["convert"])


def test_quiet_shows_nothing(folder: Path) -> None:
    assert on_terminal(folder, "convert", "-p", "-q", "guest.qcow2", "out") == ""


def test_no_color_is_honoured(folder: Path) -> None:
    assert "\x1b[3" not in on_terminal(folder, "convert", "-p", "guest.qcow2", "out", NO_COLOR="1")


def test_a_dumb_terminal_gets_the_line(folder: Path) -> None:
    written = on_terminal(folder, "convert", "-p", "guest.qcow2", "out", TERM="dumb")
    assert LINE.fullmatch(written.rstrip().split("\r")[-1])


@pytest.mark.parametrize("words", LONG.values(), ids=LONG)
def test_elsewhere_the_line_is_qemu_imgs(folder: Path, pyimago: Run, words: tuple[str, ...]) -> None:
    done = pyimago(words[0], "-p", *words[1:])
    lines = done.stderr if words[0] in {"bench", "hash", "map"} else done.stdout
    shown = [text for text in lines.splitlines() if LINE.fullmatch(text)]
    assert shown == lines.splitlines()[: len(shown)]
    assert shown[-1] == "    (100.00/100%)"
    assert pyimago(words[0], "-p", "-q", *words[1:], check=False).stderr == ""


def test_json_on_stdout_is_alone(folder: Path, pyimago: Run) -> None:
    done = pyimago("check", "-p", "--output=json", "guest.qcow2")
    assert json.loads(done.stdout)["check-errors"] == 0
    assert done.stderr.endswith("    (100.00/100%)\n")


@pytest.mark.parametrize("words", LONG.values(), ids=LONG)
def test_progress_for_programs(folder: Path, pyimago: Run, words: tuple[str, ...]) -> None:
    done = pyimago(words[0], "--progress=json", *words[1:])
    documents = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(list(d) == ["command", "done", "total", "seconds", "rate", "left"] for d in documents)
    assert {document["command"] for document in documents} == {words[0]}
    assert documents[-1]["done"] == documents[-1]["total"]
    assert "%)" not in done.stdout


def test_the_word_behind_progress_is_an_operand(folder: Path, pyimago: Run) -> None:
    pyimago("convert", "--progress", "guest.qcow2", "out")
    assert "json" in pyimago("convert", "--help").stdout
    assert pyimago("convert", "--progress=xml", "guest.qcow2", "out", check=False).returncode == 1


@pytest.mark.parametrize("words", LONG.values(), ids=LONG)
def test_sigusr1_is_answered_without_p(folder: Path, words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [*signalled(signal.SIGUSR1), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert LINE.fullmatch(done.stderr.rstrip("\n"))
    assert "%)" not in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("info", "guest.qcow2"),
        ("snapshot", "-l", "guest.qcow2"),
        ("bitmap", "--add", "guest.qcow2", "daily"),
        ("completion", "bash"),
        *LONG.values(),
    ],
    ids=lambda words: words[0],
)
def test_sigusr1_ends_no_command(folder: Path, words: tuple[str, ...]) -> None:
    """qemu-img has it blocked from its start on."""
    subprocess.run([sys.executable, "-c", AT_ITS_START, *words], cwd=folder, timeout=60, check=True)


def test_sigusr1_does_not_spoil_a_bar(folder: Path) -> None:
    written, status = terminal(folder, [*signalled(signal.SIGUSR1), "convert", "-p", "guest.qcow2", "out"])
    assert status == 0
    assert "\x1b[K    (0.00/100%)\r\n" in written


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("name", LONG)
def test_ending_it_is_one_line_the_signals_status_and_no_trace(
    folder: Path, pyimago: Run, name: str, number: signal.Signals
) -> None:
    before = contents(folder)
    done = subprocess.run(
        [*signalled(number), *LONG[name]], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -number  # 128 + number, to a shell
    assert done.stdout == "" or name in SAYS_FIRST
    assert re.fullmatch(r"pyimago: [a-z ]+\n", done.stderr)
    if name in KEEPS:
        pyimago("check", "same.qcow2")
        pyimago(*LONG[name])
        pyimago("check", "same.qcow2")
    else:
        assert contents(folder) == before


def test_ctrl_c_wipes_the_bar(folder: Path) -> None:
    written, status = terminal(folder, [*signalled(signal.SIGINT), "convert", "-p", "guest.qcow2", "out"])
    assert status == -signal.SIGINT
    assert written.endswith("\r\x1b[Kpyimago: interrupted\r\n")


def test_a_shells_loop_ends_with_ctrl_c(folder: Path) -> None:
    """Which it does only where the command dies of the signal."""
    (folder / "run.py").write_text(SIGNALLED.format(number=int(signal.SIGINT)))
    script = f"for i in 1 2; do echo begun; {sys.executable} run.py hash guest.qcow2; echo $?; done"
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[:2] == ["begun", str(128 + signal.SIGINT)]


def test_without_tqdm_there_is_the_line(folder: Path) -> None:
    program = "import sys; sys.modules['tqdm'] = None; from pyimago.cli import main; sys.exit(main())"
    written, status = terminal(folder, [sys.executable, "-c", program, "convert", "-p", "guest.qcow2", "out"])
    assert status == 0
    assert LINE.fullmatch(written.rstrip().split("\r")[-1])
