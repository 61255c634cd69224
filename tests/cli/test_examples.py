"""The examples that `--help` ends with are true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyimago import open as open_image
from pyimago.cli import COMMANDS, _examples

from .conftest import Run

LINES = {
    command: [line for line in text.splitlines() if line[0] != " "]
    for command, text in _examples.EXAMPLES.items()
}


@pytest.fixture
def folder(pyimago: Run, tmp_path: Path) -> Path:
    """With the images that the examples name."""
    pyimago("create", "-f", "qcow2", "base.qcow2", "1M")
    pyimago("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "disk.qcow2")
    with open_image(tmp_path / "disk.qcow2", write=True) as image:
        image.write(b"content!" * 8192, 65536)
    pyimago("convert", "disk.qcow2", "disk.raw")
    pyimago("convert", "-O", "qcow2", "disk.qcow2", "copy.qcow2")
    pyimago("convert", "-O", "qcow2", "base.qcow2", "newbase.qcow2")
    (tmp_path / ".config/fish/completions").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_examples(command: str, pyimago: Run) -> None:
    assert len(LINES[command]) >= 2
    help_ = pyimago(command, "--help").stdout
    assert help_.endswith(_examples.epilog(command, "pyimago") + "\n")
    assert all(len(line) <= 80 for line in help_.splitlines())


@pytest.mark.parametrize("line", [line for lines in LINES.values() for line in lines])
def test_example_runs(line: str, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", line],
        cwd=folder,
        env={**os.environ, "PATH": path, "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = re.sub(r" *\(\d+\.\d\d/100%\)\n", "", done.stderr) if "hash -p" in line else done.stderr
    assert said == ""
