"""TAB, in the real shells that are installed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from pyimago.cli import _completion, _layout

from .conftest import COMMAND, Run

SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(pyimago completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -U compinit; compinit -u -D; eval "$(pyimago completion zsh)"'),
    "fish": (["fish", "--no-config", "-i"], "pyimago completion fish | source"),
}
TYPED = {
    "sna": "snapshot",
    "convert -O q": "convert -O qcow2",
    "convert --target-f": "convert --target-format",
    "create -o compat=0": "create -o compat=0.10",
    "create -o compat=1.1,clus": "create -o compat=1.1,cluster_size=",
    "check -r al": "check -r all",
    "info gu": "info guest.qcow2",
}


OBEYED = re.compile(r"\x1b(\[[0-9;?=>]*[ -/]*[a-zA-Z]|\][^\a\x1b]*(\a|\x1b\\)|[=>]|\(B)")
"""By a terminal."""


class Shell:
    """A real one on a terminal."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._child, self._terminal = pty.fork()
        if self._child == 0:
            os.chdir(folder)
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            os.execvpe(command[0], command, {"PATH": path, "TERM": "xterm", "HOME": str(folder), "PS1": "$ "})
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Until what was written since the last call matches, with what a terminal obeys left out."""
        written, end = b"", time.monotonic() + 60
        while time.monotonic() < end:
            if select.select([self._terminal], [], [], 0.2)[0]:
                written += os.read(self._terminal, 65536)
            text = OBEYED.sub("", written.decode())
            if match := re.search(pattern, text):
                return match
        raise AssertionError(written)

    def close(self) -> None:
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        os.close(self._terminal)


@pytest.mark.parametrize("name", SHELLS)
def test_tab_completes(name: str, guest: Path) -> None:
    command, load = SHELLS[name]
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    shell = Shell(command, guest.parent)
    try:
        shell.type(f"{load}; echo 'rea''dy'\n")
        shell.wait_for(r"ready\r")
        for typed, completed in TYPED.items():
            # TAB; then what the line has become goes to `echo`, from its start (Ctrl-A) to its end (Ctrl-E).
            shell.type(f"pyimago {typed}\t\x01echo '<'\x05'>'\n")
            shown = shell.wait_for(r"<(pyimago [^>']*)>")[1]
            assert shown.rstrip() == f"pyimago {completed}"
    finally:
        shell.close()


def test_what_is_offered_is_taken() -> None:
    for option, values in _completion.VALUES.items():
        assert option in _layout.OPTIONS
        for value in values:
            assert _layout.parse([f"{option}={value}"])


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_for_the_name_that_was_called(shell: str, tmp_path: Path) -> None:
    link = tmp_path / "qemu-img"
    link.symlink_to(COMMAND)
    script = subprocess.check_output([link, "completion", shell], text=True, timeout=60)
    assert "qemu-img" in script


def test_without_argcomplete_it_says_what_is_missing() -> None:
    program = "import sys; sys.modules['argcomplete'] = None; from pyimago.cli import main; main()"
    command = [sys.executable, "-c", program, "completion", "zsh"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert "pip install argcomplete" in done.stderr


def test_no_such_shell(pyimago: Run) -> None:
    assert pyimago("completion", "dosshell", check=False).returncode == 1
