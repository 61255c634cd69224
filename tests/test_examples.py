"""Every example runs from the installed wheel, and says what it should."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
DEMO = ROOT / "tests" / "data" / "demo"
VOLUME = b"pyimago-demo"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the demo image as `image.qcow2`, its backing file beside it."""
    shutil.copyfile(DEMO / "guest.qcow2", tmp_path / "image.qcow2")
    shutil.copyfile(DEMO / "base.qcow2", tmp_path / "base.qcow2")
    return tmp_path


def run(folder: Path, name: str, *arguments: str) -> str:
    """What the example prints; a failure, or anything on stderr such as a ResourceWarning, fails the test."""
    command = [sys.executable, "-W", "error", "-X", "dev", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_example_has_a_test() -> None:
    named = set(re.findall(r'"(\w+\.py)"', Path(__file__).read_text()))
    modules = {"ext4.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == named - modules | modules & named


def test_demo_reads_writes_and_converts(tmp_path: Path) -> None:
    lines = run(tmp_path, "demo.py")
    assert "pyimago-demo" in lines
    assert "Hello from a file of an ext4 file system" in lines
    assert "converted the copy to raw: 524288 bytes, equal" in lines
    assert list(tmp_path.iterdir()) == []


def test_read_sync_prints_the_first_bytes(folder: Path) -> None:
    assert run(folder, "read_sync.py") == f"{bytes(16).hex(' ')}\n"


def test_read_async_prints_the_first_bytes(folder: Path) -> None:
    assert run(folder, "read_async.py") == f"{bytes(16).hex(' ')}\n"


def test_print_extents_covers_the_image(folder: Path) -> None:
    _, *rows, last = run(folder, "print_extents.py", "image.qcow2").splitlines()
    spans = [(int(row.split()[0]), int(row.split()[1])) for row in rows]
    end = 0
    for offset, length in spans:
        assert offset == end
        end += length
    assert last == f"151552 of {end} bytes are data"


@pytest.fixture
def port(folder: Path) -> Iterator[int]:
    """A running `serve_ranges.py`; it must end well on Ctrl-C."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / "serve_ranges.py"), "image.qcow2"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        match = re.match(r"http://127\.0\.0\.1:(\d+)/", server.stdout.readline())
        try:
            assert match is not None
            yield int(match[1])
        finally:
            server.send_signal(signal.SIGINT)
            _, errors = server.communicate(timeout=30)
        assert (server.returncode, errors) == (0, "")


def get(port: int, span: str) -> tuple[int, bytes]:
    """Status and body of a ranged GET."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/", headers={"Range": f"bytes={span}"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_serve_ranges_answers_ranges(port: int) -> None:
    volume_name_at = 1024 + 120
    assert get(port, f"{volume_name_at}-{volume_name_at + len(VOLUME) - 1}") == (206, VOLUME)
    assert get(port, "524287-") == (206, b"\0")
    assert len(get(port, "0-")[1]) == 524288
    assert get(port, "524288-") == (416, b"")
