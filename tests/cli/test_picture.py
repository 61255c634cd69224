"""`map --picture`: what is drawn is what is there."""

from __future__ import annotations

import argparse
import re
import struct
import xml.etree.ElementTree as ET
import zlib
from typing import TYPE_CHECKING

import pytest

import pyimago
from pyimago.cli import _picture, _survey
from pyimago.cli._images import Images
from pyimago.cli._survey import COMPRESSED, DATA, UNALLOCATED, ZEROES

from .test_progress import on_terminal

if TYPE_CHECKING:
    from pathlib import Path

    from pyimago import SyncFormatAccess

    from .conftest import Run

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Of 16 MiB: two images, the lower one of 8 MiB; something of each kind, none in the same eighth."""
    pyimago.create(tmp_path / "base.qcow2", 8 * MIB, format="qcow2")
    with pyimago.open(tmp_path / "base.qcow2", write=True) as base:
        base.write_compressed(b"packed! " * (2 * MIB // 8), 0)
        base.write(b"d" * MIB, 4 * MIB)
    path = tmp_path / "disk.qcow2"
    pyimago.create(path, 16 * MIB, format="qcow2", backing="base.qcow2", backing_format="qcow2")
    with pyimago.open(path, write=True) as image:
        image.write(b"d" * (2 * MIB), 8 * MIB)
        image.write_zeroes(2 * MIB, MIB)
        image.write_zeroes(4 * MIB, MIB)
    return path


def surveyed(path: Path, columns: int, start: int = 0, length: int | None = None) -> _survey.Survey:
    with pyimago.open(path) as image, Images(argparse.Namespace()).layers(str(path), None) as layers:
        return _survey.survey(
            image,
            layers,
            start=start,
            length=image.size - start if length is None else length,
            columns=columns,
            progress=lambda _done, _total: None,
        )


def naive(image: SyncFormatAccess, columns: int) -> list[list[int]]:
    """The same for one image, found a sector at a time."""
    found = [[0] * 4 for _ in range(columns)]
    for extent in image.extents():
        for offset in range(extent.offset, extent.offset + extent.length, 512):
            found[offset * columns // image.size][_survey._kind(extent)] += 512
    return found


def test_survey_has_a_row_for_each_image_and_one_for_all(disk: Path) -> None:
    guest, upper, lower = surveyed(disk, 16).rows
    assert [row.name for row in (guest, upper, lower)] == [
        "what a guest sees",
        str(disk),
        str(disk.with_name("base.qcow2")),
    ]

    def kinds(row: _survey.Row) -> list[list[int]]:
        return [[kind for kind, count in enumerate(column) if count] for column in row.columns]

    nothing: list[int] = []
    free = [UNALLOCATED]
    assert kinds(upper) == [
        free,
        free,
        [ZEROES],
        free,
        [ZEROES],
        free,
        free,
        free,
        [DATA],
        [DATA],
        *[free] * 6,
    ]
    assert kinds(lower) == [[COMPRESSED], [COMPRESSED], free, free, [DATA], free, free, free, *[nothing] * 8]
    assert kinds(guest)[:5] == [[COMPRESSED], [COMPRESSED], [ZEROES], free, [ZEROES]]
    assert guest.totals == [2 * MIB, 2 * MIB, 2 * MIB, 10 * MIB]


@pytest.mark.parametrize("columns", [1, 7, 100, 1000])
def test_survey_counts_every_byte_once(disk: Path, columns: int) -> None:
    with pyimago.open(disk) as image:
        row = surveyed(disk, columns).rows[0]
        assert [sum(column) for column in row.columns] == [
            16 * MIB * (i + 1) // columns - 16 * MIB * i // columns for i in range(columns)
        ]
        if 16 * MIB // 512 % columns == 0:
            assert row.columns == naive(image, columns)
        assert row.exact


def test_what_is_too_much_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "spotted.qcow2"
    pyimago.create(path, 64 * MIB, format="qcow2", cluster_size=4096)
    with pyimago.open(path, write=True) as image:
        image.write_many([(b"x" * 4096, at) for at in range(0, 32 * MIB, 16384)])
    monkeypatch.setattr(_survey, "EXTENTS", 512)
    (row,) = surveyed(path, 16).rows
    assert not row.exact
    data, _, _, free = row.totals
    assert 6 * MIB <= data <= 10 * MIB
    assert data + free == 64 * MIB
    assert "about" in _picture._stored(row)


def pixels(png: bytes) -> list[list[str]]:
    """The colours of a PNG file, row by row."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, dict[bytes, bytes]()
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        content = png[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", png, at + 8 + length)[0] == zlib.crc32(kind + content)
        chunks[kind] = content
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    width, height, *form = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert form == [8, 3, 0, 0, 0]
    palette = [f"#{chunks[b'PLTE'][i : i + 3].hex()}" for i in range(0, len(chunks[b"PLTE"]), 3)]
    data = zlib.decompress(chunks[b"IDAT"])
    assert len(data) == height * (width + 1)
    return [[palette[i] for i in data[y * (width + 1) + 1 : (y + 1) * (width + 1)]] for y in range(height)]


def test_png_shows_each_kind_where_it_is(disk: Path, pyimago: Run) -> None:
    pyimago("map", "--picture", "map.png", disk)
    image = pixels((disk.parent / "map.png").read_bytes())
    left = _picture.MARGIN + _picture.LABELS * _picture.CHAR[0]
    bands = [y for y in range(len(image)) if image[y][left + 4] in _picture.COLOURS.values()]
    middle = bands[0] + _picture.TALL // 2

    def at(mebibyte: float) -> str:
        return image[middle][left + round(_picture.PLOT * mebibyte / 16)]

    assert at(0.5) == at(1.5) == _picture.COLOURS[COMPRESSED]
    assert at(2.5) == at(4.5) == _picture.COLOURS[ZEROES]
    assert at(3.5) == at(15.5) == _picture.COLOURS[UNALLOCATED]
    assert at(8.5) == at(9.5) == _picture.COLOURS[DATA]
    assert len(bands) >= 3 * _picture.TALL


def test_svg_is_the_same_picture(disk: Path) -> None:
    drawing = _picture.draw(surveyed(disk, 1000), "title & <more>")
    root = ET.fromstring(_picture.svg(drawing))
    space = "{http://www.w3.org/2000/svg}"
    drawn = [[_picture.PAPER] * drawing.width for _ in range(drawing.height)]
    for rect in root.iter(f"{space}rect"):
        if rect.get("width") != "100%":
            x, y, width, height = (int(rect.get(name, "")) for name in ("x", "y", "width", "height"))
            for line in drawn[y : y + height]:
                line[x : x + width] = [rect.get("fill", "")] * width
    painted = pixels(_picture.png(drawing))
    left = _picture.MARGIN + _picture.LABELS * _picture.CHAR[0]
    end = _picture.MARGIN + 2 * _picture.CHAR[1] + 2 * _picture.TALL
    assert [line[left:] for line in painted[50:end]] == [line[left:] for line in drawn[50:end]]
    assert next(root.iter(f"{space}text")).text == "title & <more>"


def test_a_little_is_never_too_little_to_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "huge.qcow2"
    pyimago.create(path, 1 << 46, format="qcow2", cluster_size=2 * MIB)
    with pyimago.open(path, write=True) as image:
        image.write(b"x" * (2 * MIB), 1 << 45)
    image_ = pixels(_picture.png(_picture.draw(surveyed(path, 1000), "")))
    assert sum(line.count(_picture.COLOURS[DATA]) for line in image_[:100]) == _picture.TALL // 8
    assert any("D" in line or "d" in line for line in _text(path).splitlines()[2:3])


def _text(path: Path) -> str:
    import io

    return _picture.text(surveyed(path, 64), "", io.StringIO())


@pytest.mark.parametrize("images", [1, 2, 13, 41, 256])
def test_any_length_of_a_chain_has_a_picture(images: int, tmp_path: Path) -> None:
    pyimago.create(tmp_path / "0.qcow2", MIB, format="qcow2")
    for number in range(1, images):
        path, below = tmp_path / f"{number}.qcow2", f"{number - 1}.qcow2"
        pyimago.create(path, MIB, format="qcow2", unsafe=True, backing=below, backing_format="qcow2")
    with pyimago.open(tmp_path / "0.qcow2", write=True) as image:
        image.write(b"x" * MIB, 0)
    top = tmp_path / f"{images - 1}.qcow2"
    survey = surveyed(top, _picture.columns_for(images))
    assert len(survey.rows) == (1 if images == 1 else images + 1)
    drawing = _picture.draw(survey, "title")
    image_ = pixels(_picture.png(drawing))
    assert image_[drawing.height - 1][0] == _picture.PAPER
    assert len(_picture.svg(drawing)) < 100_000
    names = [shape.text for shape in drawing.shapes if isinstance(shape, _picture.Text)]
    assert any(name.endswith(top.name) for name in names)


def test_in_a_terminal_it_has_the_terminals_width_and_colours(disk: Path) -> None:
    written = on_terminal(disk.parent, "map", "--picture", "disk.qcow2")
    lines = [re.sub(r"\x1b\[\d*m", "", line) for line in written.split("\r\n")]
    guest = lines[2]
    assert guest.startswith("what a guest sees")
    assert len(guest) == 80
    assert all(len(line) <= 80 for line in lines[:-2])
    assert "\x1b[33m███" in written
    assert "\x1b[34m███" in written


def test_elsewhere_it_is_letters(disk: Path, pyimago: Run) -> None:
    written = pyimago("map", "--picture", disk, "-l", "16M").stdout
    guest = written.splitlines()[2].split()[-1]
    assert re.fullmatch(r"C+ZZ+\.+ZZ+\.+D+\.+", guest, re.IGNORECASE)
    assert written.isascii()
    assert "\x1b" not in written
    assert "\x1b" not in on_terminal(disk.parent, "map", "disk.qcow2", "--picture", NO_COLOR="1")


def test_a_part_of_the_disk_has_its_own_axis(disk: Path, pyimago: Run) -> None:
    written = pyimago("map", "--picture", "-s", "8M", "-l", "2M", disk).stdout
    assert re.search(r"what a guest sees +D+\n", written)
    assert "8 MiB" in written
    assert re.search(r"8 MiB .* 10 MiB\n", written)


def test_names_cannot_play_with_the_terminal_or_break_the_file(disk: Path, pyimago: Run) -> None:
    bad = disk.rename(disk.with_name("\x1b[31m<&>é.qcow2"))
    assert "\x1b" not in pyimago("map", "--picture", bad.name).stdout
    pyimago("map", "--picture=map.svg", bad.name)
    texts = [text.text for text in ET.parse(disk.parent / "map.svg").iter() if text.tag.endswith("text")]
    assert texts[0] is not None
    assert texts[0].startswith("\\x1b[31m<&>é.qcow2: qcow2")
    pyimago("map", "--picture=map.png", bad.name)


def test_the_word_behind_picture_may_be_the_image(disk: Path, pyimago: Run) -> None:
    before = disk.read_bytes()
    pyimago("map", "--picture", "disk.qcow2")
    assert pyimago("map", "--picture", "disk.qcow2", "base.qcow2", check=False).returncode == 1
    done = pyimago("map", "--picture=disk.qcow2", "base.qcow2", check=False)
    assert done.stderr == "pyimago: disk.qcow2: a picture is a file with the end .png or .svg\n"
    assert disk.read_bytes() == before


def test_a_picture_never_replaces_what_it_shows(disk: Path, pyimago: Run) -> None:
    (disk.parent / "link.png").symlink_to("base.qcow2")
    done = pyimago("map", "--picture", "link.png", disk, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "pyimago: link.png: this is the image, not a picture of it\n",
    )


def test_a_chain_of_encrypted_images_has_a_picture(tmp_path: Path, pyimago: Run) -> None:
    secret = ("--object", "secret,id=s,data=mine")
    vault = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    pyimago("create", "-q", "-f", "qcow2", *secret, "-o", vault, "base.qcow2", "1M")
    upper = ("-u", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2", "1M")
    pyimago("create", "-q", "-f", "qcow2", *secret, "-o", vault, *upper)
    name = "driver=qcow2,encrypt.key-secret=s,file.filename=top.qcow2"
    written = pyimago("map", "--picture", *secret, "--image-opts", name).stdout
    assert re.search(r"base\.qcow2 +\.+\n", written)


def test_an_image_within_a_file_has_the_same_picture(disk: Path, pyimago: Run) -> None:
    whole = pyimago("map", "--picture", disk).stdout.splitlines()
    disk.with_name("bundle").write_bytes(bytes(4096) + disk.read_bytes())
    name = "driver=qcow2,file.driver=raw,file.offset=4k,file.file.filename=bundle"
    part = pyimago("map", "--picture", "--image-opts", name).stdout.splitlines()
    drawn = re.compile(r" ([^ ]{8,})$", re.MULTILINE)
    assert [drawn.findall(line) for line in whole] == [drawn.findall(line) for line in part]
    assert any(drawn.findall(line) for line in part)
    alone = pyimago("map", "--picture", f'json:{{"file.filename": "{disk.name}", "backing": null}}').stdout
    assert "base.qcow2" not in alone


def test_a_chain_that_is_given_has_the_same_picture(disk: Path, pyimago: Run) -> None:
    whole = pyimago("map", "--picture", disk.name).stdout.splitlines()
    disk.with_name("base.qcow2").rename(disk.with_name("moved"))
    name = f"driver=qcow2,file.filename={disk.name},backing.driver=qcow2,backing.file.filename=moved"
    given = pyimago("map", "--picture", "--image-opts", name).stdout.splitlines()
    drawn = re.compile(r" ([^ ]{8,})$", re.MULTILINE)
    assert [drawn.findall(line) for line in given] == [drawn.findall(line) for line in whole]
    assert any("moved" in line for line in given)
    disk.with_name("lowest").write_bytes(b"d" * MIB)
    lowest = "backing.backing.driver=raw,backing.backing.file.filename=lowest"
    assert ", a chain of 3 images" in pyimago("map", "--picture", "--image-opts", f"{name},{lowest}").stdout
    wrong = "driver=raw,file.filename=moved,backing.driver=raw,backing.file.filename=lowest"
    refused = pyimago("map", "--picture", "--image-opts", wrong, check=False)
    assert "does not support backing files" in refused.stderr


@pytest.mark.parametrize("words", [("--output=json",), ("-s", "16M")])
def test_what_cannot_be_drawn_is_refused(disk: Path, pyimago: Run, words: tuple[str, ...]) -> None:
    done = pyimago("map", "--picture", disk, *words, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
