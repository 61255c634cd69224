"""What the tests of the command share: the command itself, and QEMU's tools to compare it with."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from tests.conftest import installed

if TYPE_CHECKING:
    from subprocess import CompletedProcess

DEMO = Path(__file__).parent.parent / "data" / "demo"
COMMAND = str(Path(sys.executable).with_name("pyimago"))


class Run(Protocol):
    """Runs a command with `arguments` in the test's folder; `check=False` lets it fail."""

    def __call__(self, *arguments: str | Path, check: bool = True) -> CompletedProcess[str]: ...


def runner(command: str, folder: Path) -> Run:
    """A `Run` of `command` in `folder`."""

    def run(*arguments: str | Path, check: bool = True) -> CompletedProcess[str]:
        done = subprocess.run(
            [command, *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture
def pyimago(tmp_path: Path) -> Run:
    """The installed `pyimago` command."""
    return runner(COMMAND, tmp_path)


@pytest.fixture
def qemu_img(tmp_path: Path) -> Run:
    """`qemu-img`; the test is skipped where it is missing, or prints other lines than those of 10.0."""
    run = runner(installed("qemu-img"), tmp_path)
    version = re.search(r"version (\d+)\.", run("--version").stdout)
    if version is None or int(version[1]) < 10:
        pytest.skip("qemu-img 10.0 or later is not installed (Debian: qemu-utils)")
    return run


@pytest.fixture
def qemu_io(tmp_path: Path) -> Run:
    """`qemu-io`; the test is skipped where it is missing."""
    return runner(installed("qemu-io"), tmp_path)


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """A copy of the demo image in the test's folder, its backing file beside it."""
    shutil.copyfile(DEMO / "base.qcow2", tmp_path / "base.qcow2")
    return shutil.copyfile(DEMO / "guest.qcow2", tmp_path / "guest.qcow2")
