"""Every example runs from the installed wheel, and says what it should."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pyimago

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
    modules = {"mini_ext4.py"}
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


@contextmanager
def serving(folder: Path, name: str, argument: str) -> Iterator[int]:
    """The port of an example that serves and is running; it must end well on Ctrl-C."""
    command = [sys.executable, "-W", "error", "-X", "dev", str(EXAMPLES / name), argument]
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


def ask(port: int, method: str, url: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, url, body=body, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_serve_ranges_answers_ranges(folder: Path) -> None:
    with serving(folder, "serve_ranges.py", "image.qcow2") as port:

        def get(span: str) -> tuple[int, bytes]:
            return ask(port, "GET", "/", Range=f"bytes={span}")

        volume_name_at = 1024 + 120
        assert get(f"{volume_name_at}-{volume_name_at + len(VOLUME) - 1}") == (206, VOLUME)
        assert get("524287-") == (206, b"\0")
        assert len(get("0-")[1]) == 524288
        assert get("524288-") == (416, b"")


def partitioned(folder: Path) -> Path:
    """A qcow2 with a GPT of two partitions; the second is the demo's ext4 file system."""
    guid, first, second = bytes(range(1, 17)), 2048, 4096
    header = b"EFI PART" + bytes(64) + struct.pack("<QII", 2, 128, 128)
    protective = bytes(446) + struct.pack("<4xB3xII", 0xEE, 1, 8191) + bytes(48) + b"\x55\xaa"
    entries = b"".join(
        struct.pack("<16s16sQQ80x", guid, guid, start, start + 2047) for start in (first, second)
    )
    path = folder / "partitioned.qcow2"
    pyimago.create(path, 4 << 20, format="qcow2")
    with pyimago.open(folder / "image.qcow2") as source, pyimago.open(path, write=True) as disk:
        disk.write(protective + header, 0)
        disk.write(entries, 1024)
        disk.write(source.pread(source.size, 0), second * 512)
    return path


def test_read_file_finds_a_file_in_a_partition(folder: Path) -> None:
    path = partitioned(folder)
    assert run(folder, "read_file.py", str(path), "/hello.txt") == (
        "Hello from a file of an ext4 file system,\nin a compressed cluster of a qcow2 overlay.\n"
    )
    assert run(folder, "read_file.py", "image.qcow2", "/etc/hostname") == "imago-demo\n"


def test_read_file_says_that_there_is_none(folder: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "read_file.py"), "image.qcow2", "/etc/shadow"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "read_file: /etc/shadow is in no ext4 file system of image.qcow2\n"


def leak(path: Path, clusters: int) -> None:
    """Have refcounts say that so many clusters behind the image's end are in use: what a crash leaves."""
    with path.open("r+b") as file:
        header = file.read(104)
        (table,) = struct.unpack_from(">Q", header, 48)
        file.seek(0, os.SEEK_END)
        cluster = 1 << struct.unpack_from(">I", header, 20)[0]
        end = -(-file.tell() // cluster)
        file.seek(table)
        (block,) = struct.unpack(">Q", file.read(8))
        file.seek(block + 2 * end)
        file.write(b"\x00\x01" * clusters)
        file.truncate((end + clusters) * cluster)


def test_find_leaks_finds_and_repairs_them(folder: Path) -> None:
    (folder / "below").mkdir()
    leaky = folder / "below" / "called.img"
    pyimago.create(leaky, 1 << 20, format="qcow2")
    leak(leaky, 3)
    (folder / "raw.qcow2").write_bytes(b"not one")

    def find(*arguments: str) -> tuple[list[str], int]:
        command = [sys.executable, "-W", "error", str(EXAMPLES / "find_leaks.py"), ".", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        assert done.stderr == ""
        return done.stdout.splitlines(), done.returncode

    assert find() == (
        ["below/called.img: 196608 bytes leaked", "3 images, 1 with something left to do"],
        1,
    )
    with pyimago.open(leaky, write=True):
        assert find() == (
            ["below/called.img: in use, not checked", "3 images, 0 with something left to do"],
            0,
        )
    assert find("--repair")[0][0] == "below/called.img: 196608 bytes given back"
    assert find() == (["3 images, 0 with something left to do"], 0)


def test_incremental_backup_copies_what_changed(tmp_path: Path) -> None:
    disk, backups = tmp_path / "disk.qcow2", tmp_path / "backups"
    pyimago.create(disk, 8 << 20, format="qcow2")

    def write(data: bytes, offset: int) -> None:
        with pyimago.open(disk, write=True) as image:
            image.write(data, offset)

    def back_up() -> str:
        return run(tmp_path, "incremental_backup.py", "disk.qcow2", "backups")

    def content(path: Path) -> bytes:
        with pyimago.open(path) as image:
            return image.pread(image.size, 0)

    write(b"first" * 1000, 1 << 20)
    assert back_up() == "0000.qcow2: everything, 65536 bytes\n"
    write(b"second" * 1000, 5 << 20)
    yesterday = content(disk)
    assert back_up() == "0001.qcow2: what changed, 65536 bytes\n"
    assert back_up() == "0002.qcow2: what changed, 0 bytes\n"
    write(b"third", 1 << 20)
    assert back_up() == "0003.qcow2: what changed, 65536 bytes\n"
    assert content(backups / "0003.qcow2") == content(disk)
    assert content(backups / "0001.qcow2") == content(backups / "0002.qcow2") == yesterday
    assert not (backups / "unfinished.qcow2").exists()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("incremental_backup.py", ["none.qcow2", "backups"]), ("find_leaks.py", ["none"])],
)
def test_what_is_not_there_is_said_in_a_line(tmp_path: Path, name: str, arguments: list[str]) -> None:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "none" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.fixture
def service(folder: Path) -> Iterator[int]:
    """The port of a running `convert_uploads.py`."""
    (folder / "results").mkdir()
    with serving(folder, "convert_uploads.py", "results") as port:
        yield port


def test_convert_uploads_tells_its_progress_and_has_the_result(service: int, folder: Path) -> None:
    flat = folder / "flat.qcow2"
    pyimago.convert(folder / "image.qcow2", flat, format="qcow2")
    status, lines = ask(service, "PUT", "/?from=qcow2&to=raw", flat.read_bytes())
    *steps, last = [json.loads(line) for line in lines.splitlines()]
    assert status == 200
    assert {step["total"] for step in steps} == {524288}
    assert steps[-1]["done"] == 524288
    status, result = ask(service, "GET", f"/{last['result']}")
    with pyimago.open(flat) as image:
        assert (status, result) == (200, image.pread(image.size, 0))
    assert [path.name for path in (folder / "results").iterdir()] == [last["result"]]


def test_convert_uploads_keeps_the_results_of_its_last_run(service: int, folder: Path) -> None:
    (folder / "results" / "1.qcow2").write_bytes(b"of yesterday")
    _, lines = ask(service, "PUT", "/?from=raw&to=qcow2", b"of today")
    assert json.loads(lines.splitlines()[-1]) == {"result": "2.qcow2"}
    assert (folder / "results" / "1.qcow2").read_bytes() == b"of yesterday"


def test_convert_uploads_opens_nothing_that_an_upload_names(service: int, folder: Path) -> None:
    _, lines = ask(service, "PUT", "/?from=qcow2&to=raw", (folder / "image.qcow2").read_bytes())
    assert "base.qcow2" in json.loads(lines.splitlines()[-1])["error"]
    assert list((folder / "results").iterdir()) == []
    assert ask(service, "PUT", "/?from=qcow2&to=vhdx", b"x")[0] == 400
    assert ask(service, "GET", "/../image.qcow2")[0] == 400
    with socket.create_connection(("127.0.0.1", service), timeout=30) as client:
        client.sendall(b"GARBAGE\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 400"


def test_convert_uploads_ends_a_conversion_with_its_client(service: int, folder: Path) -> None:
    body = os.urandom(1 << 20) * 64  # packing it takes far longer than a client needs to go away
    with socket.create_connection(("127.0.0.1", service), timeout=30) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(f"PUT /?from=raw&to=qcow2 HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        client.sendall(body)
        assert client.recv(12) == b"HTTP/1.1 200"
    assert ask(service, "GET", "/none")[0] == 400  # it goes on
    end = time.monotonic() + 60
    while list((folder / "results").iterdir()) and time.monotonic() < end:
        time.sleep(0.05)
    assert list((folder / "results").iterdir()) == []
