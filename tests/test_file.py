"""`SyncFormatAccess.file()`: a standard file object over the disk."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from typing import TYPE_CHECKING

import pytest
from tests.conftest import MakeImage, pattern

import pyimago

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 300_032
CONTENT = pattern(8, SIZE)


@pytest.fixture
def path(make_image: MakeImage) -> Path:
    return make_image(CONTENT)


def test_it_reads_seeks_and_tells(path: Path) -> None:
    with pyimago.open(path) as image, image.file() as file:
        assert isinstance(file, io.RawIOBase)
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
        assert file.read(10) == CONTENT[:10]
        assert file.tell() == 10
        assert file.seek(-5, os.SEEK_END) == SIZE - 5
        assert file.read(100) == CONTENT[-5:]
        assert file.read(100) == b""
        assert file.seek(100) == 100
        assert file.seek(20, os.SEEK_CUR) == 120
        buf = bytearray(30)
        assert file.readinto(buf) == 30
        assert buf == CONTENT[120:150]
        file.seek(0)
        assert file.readall() == CONTENT


def test_it_works_under_a_buffered_reader(path: Path) -> None:
    with pyimago.open(path) as image, io.BufferedReader(image.file()) as file:
        assert file.read(3) == CONTENT[:3]
        assert file.peek(1)[:1] == CONTENT[3:4]
        file.seek(200_000)
        assert file.read() == CONTENT[200_000:]


def test_it_is_copied_by_shutil(path: Path) -> None:
    out = io.BytesIO()
    with pyimago.open(path) as image:
        shutil.copyfileobj(image.file(), out)
    assert out.getvalue() == CONTENT


def test_an_archive_in_the_disk_is_read_in_place(make_image: MakeImage) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("name", "content")
    path = make_image(archive.getvalue(), "zip.qcow2")
    with pyimago.open(path) as image, zipfile.ZipFile(io.BufferedReader(image.file())) as zipped:
        assert zipped.read("name") == b"content"


def test_it_writes_a_writable_image_and_not_past_its_end(path: Path) -> None:
    with pyimago.open(path, write=True) as image:
        with image.file() as file:
            assert file.writable()
            file.seek(1000)
            assert file.write(b"here") == 4
            assert file.tell() == 1004
            file.seek(SIZE)
            with pytest.raises((ValueError, OSError)):
                file.write(b"beyond")
        assert image.pread(4, 1000) == b"here"


def test_closing_the_file_leaves_the_image_open(path: Path) -> None:
    with pyimago.open(path) as image:
        file = image.file()
        file.close()
        with pytest.raises(ValueError, match="closed"):
            file.read(1)
        assert image.pread(1, 0) == CONTENT[:1]


def test_a_file_of_a_closed_image_is_a_value_error(path: Path) -> None:
    with pyimago.open(path) as image:
        file = image.file()
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


def test_a_negative_seek_is_refused(path: Path) -> None:
    with pyimago.open(path) as image, image.file() as file, pytest.raises((ValueError, OSError)):
        file.seek(-1)
