"""Images that describe what is below them, as `json:{...}`: QEMU makes them, and the gate decides."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import pattern

import pyimago

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Qemu
    from tests.face import Face

SIZE = 1 << 20
CONTENT = pattern(3, SIZE)

RAW = {"driver": "file", "filename": "{}/base.raw"}
DESCRIPTIONS = {
    "a qcow2 file": ("qcow2", {"driver": "qcow2", "file": {"driver": "file", "filename": "{}/base.qcow2"}}),
    "names with dots": (
        "qcow2",
        {"driver": "qcow2", "file.filename": "{}/base.qcow2"},
    ),
    "the recorded format goes first": ("raw", {"driver": "qcow2", "file": {"filename": "{}/base.raw"}}),
    "a part of a raw file": (
        "raw",
        {
            "driver": "raw",
            "offset": 4096,
            "size": "8k",
            "file": {"driver": "file", "filename": "{}/base.raw"},
        },
    ),
    "a part of the disk in a qcow2 file": (
        "raw",
        {
            "driver": "raw",
            "offset": 65536,
            "file": {"driver": "qcow2", "file": {"driver": "file", "filename": "{}/base.qcow2"}},
        },
    ),
    "without what is below": (
        "qcow2",
        {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": "{}/middle.qcow2"}},
    ),
    "with something else below": (
        "qcow2",
        {
            "driver": "qcow2",
            "file": {"driver": "file", "filename": "{}/middle.qcow2"},
            "backing": {"driver": "raw", "file": {"driver": "file", "filename": "{}/other.raw"}},
        },
    ),
}


def yes(_name: str, _kind: str) -> bool:
    return True


def described(options: object, folder: Path) -> str:
    return "json:" + json.dumps(options).replace("{}", str(folder))


@pytest.fixture
def folder(tmp_path: Path, qemu: Qemu) -> Path:
    """`base` in two formats, an overlay `middle` of it, and `other`."""
    below = tmp_path / "below"
    below.mkdir()
    (below / "base.raw").write_bytes(CONTENT)
    (below / "other.raw").write_bytes(pattern(4, SIZE))
    qemu.img("convert", "-f", "raw", "-O", "qcow2", below / "base.raw", below / "base.qcow2")
    qemu.img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", below / "middle.qcow2")
    qemu.io(below / "middle.qcow2", "write -P 9 128k 64k")
    return below


@pytest.fixture
def make_top(folder: Path, tmp_path: Path, qemu: Qemu) -> Callable[[object, str], Path]:
    """Makes an overlay of what is described."""

    def make(options: object, kind: str) -> Path:
        top = tmp_path / "top.qcow2"
        backing = options if isinstance(options, str) else described(options, folder)
        qemu.img("create", "-q", "-f", "qcow2", "-b", backing, "-F", kind, top)
        return top

    return make


@pytest.mark.parametrize("name", DESCRIPTIONS)
async def test_what_is_described_is_read_as_qemu_reads_it(
    face: Face, name: str, folder: Path, make_top: Callable[[object, str], Path], qemu: Qemu
) -> None:
    kind, options = DESCRIPTIONS[name]
    top = make_top(options, kind)
    for implicit in ("beside", "allow", "deny"):
        with pytest.raises(pyimago.ImplicitOpenDeniedError, match=r"json:.*top\.qcow2|top\.qcow2.*json:"):
            async with face.open(top, implicit=implicit):
                pass
    async with face.open(top, write=True, implicit=yes) as image:
        wanted = await image.content()
        await image.write(b"written", 100)
    assert qemu.content(top) == wanted[:100] + b"written" + wanted[107:]
    qemu.assert_clean(top)
    if name in {"without what is below", "with something else below"}:
        # QEMU's chain follows the names alone.
        return
    theirs: Any = json.loads(qemu.img("info", "--backing-chain", "--output=json", top))
    ours = [found.to_dict() for found in await face.call("info_chain", top, implicit=yes)]
    facts = ("format", "virtual-size", "backing-filename", "full-backing-filename", "backing-filename-format")
    assert [{fact: image.get(fact) for fact in facts} for image in ours] == [
        {fact: image.get(fact) for fact in facts} for image in theirs
    ]
    if name in {"a qcow2 file", "names with dots"}:
        assert [image["filename"] for image in ours] == [image["filename"] for image in theirs]


async def test_the_function_is_asked_for_the_description_and_for_every_file_in_it(
    face: Face, folder: Path, make_top: Callable[[object, str], Path]
) -> None:
    kind, options = DESCRIPTIONS["with something else below"]
    top = make_top(options, kind)
    asked: list[tuple[str, str]] = []

    def ask(name: str, kind: str) -> bool:
        asked.append((name, kind))
        return not name.endswith("other.raw")

    with pytest.raises(pyimago.ImplicitOpenDeniedError, match=r"other\.raw"):
        async with face.open(top, implicit=ask):
            pass
    names = [described(options, folder), str(folder / "middle.qcow2"), str(folder / "other.raw")]
    assert asked == [(name, "backing") for name in names]


async def test_single_quotes_and_the_working_directory_are_as_in_qemu(
    face: Face,
    folder: Path,
    make_top: Callable[[object, str], Path],
    qemu: Qemu,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder.parent)
    top = make_top(
        "json:{'driver': 'qcow2', 'file': {'driver': 'file', 'filename': 'below/middle.qcow2'}}", "qcow2"
    )
    asked: list[str] = []

    def ask(name: str, _kind: str) -> bool:
        asked.append(name)
        return True

    async with face.open(top, implicit=ask) as image:
        content = await image.content()
    assert content == qemu.content(top)
    assert asked[1:] == [str(folder / "middle.qcow2"), str(folder / "base.qcow2")]


@pytest.mark.parametrize(
    "name",
    ["a qcow2 file", "the recorded format goes first", "a part of a raw file", "without what is below"],
)
async def test_commit_writes_into_what_is_described(
    face: Face, name: str, folder: Path, make_top: Callable[[object, str], Path], qemu: Qemu
) -> None:
    kind, options = DESCRIPTIONS[name]
    top = make_top(options, kind)
    async with face.open(top, write=True, implicit=yes) as image:
        await image.write(b"committed", 1000)
        wanted = await image.content()
    outside = (folder / "base.raw").read_bytes()[:4096]
    await face.call("commit", top, implicit=yes)
    async with face.open(top, implicit=yes) as image:
        assert await image.content() == wanted
    assert qemu.content(top) == wanted
    qemu.assert_clean(top)
    if name == "a part of a raw file":
        assert (folder / "base.raw").read_bytes()[:4096] == outside


async def test_an_image_within_an_image_is_not_written(
    face: Face, folder: Path, make_top: Callable[[object, str], Path]
) -> None:
    kind, options = DESCRIPTIONS["a part of the disk in a qcow2 file"]
    top = make_top(options, kind)
    before = (folder / "base.qcow2").read_bytes()
    with pytest.raises(pyimago.UnsupportedFeatureError, match="only read"):
        await face.call("commit", top, implicit=yes)
    assert (folder / "base.qcow2").read_bytes() == before


async def test_a_data_file_is_a_file_whatever_its_name_looks_like(
    face: Face, tmp_path: Path, qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = 'json:{"driver": "null-co"}'
    top = tmp_path / "top.qcow2"
    plain = "d" * len(name)
    pyimago.create(top, SIZE, format="qcow2", data_file=plain)
    (tmp_path / plain).rename(tmp_path / name)
    header = top.read_bytes()
    top.write_bytes(header.replace(plain.encode(), name.encode()))
    async with face.open(top, write=True) as image:
        await image.write(b"in the data file", 65536)
    assert b"in the data file" in (tmp_path / name).read_bytes()
    assert qemu.content(top)[65536 : 65536 + 16] == b"in the data file"


@pytest.mark.parametrize(
    "name", ["a part of a raw file", "a part of the disk in a qcow2 file", "a qcow2 file"]
)
async def test_what_is_described_can_be_put_below(
    face: Face, name: str, folder: Path, tmp_path: Path, qemu: Qemu
) -> None:
    kind, options = DESCRIPTIONS[name]
    below = described(options, folder)
    top, upper, alone = tmp_path / "top.qcow2", tmp_path / "upper.qcow2", tmp_path / "alone.raw"
    await face.call("create", top, format="qcow2", backing=below, backing_format=kind)
    content = qemu.content(top)
    assert len(content) == (await face.call("info", top)).virtual_size
    alone.write_bytes(content[:1000] + b"differs" + content[1007:])
    await face.call("convert", alone, upper, format="qcow2", backing=below, backing_format=kind)
    assert qemu.content(upper) == alone.read_bytes()
    pyimago.create(top, len(content), format="qcow2", backing=alone, backing_format="raw", overwrite=True)
    await face.call("rebase", top, below, backing_format=kind)
    assert qemu.content(top) == alone.read_bytes()
    for image in (top, upper):
        assert (await face.call("info", image)).backing_filename == below
        qemu.assert_clean(image)


async def test_a_description_that_cannot_be_used_touches_nothing(face: Face, tmp_path: Path) -> None:
    top = tmp_path / "top.qcow2"
    pyimago.create(top, SIZE, format="qcow2")
    before = top.read_bytes()
    for below, error in (
        ("json:{'driver': 'qcow2'", pyimago.InvalidImageError),
        ("json:{'driver': 'raw', 'file.filename': '/nowhere'}", OSError),
        ("json:{'driver': 'nbd', 'host': 'x'}", pyimago.UnsupportedFeatureError),
        (described({"driver": "qcow2", "file.filename": str(top)}, tmp_path), pyimago.ImagoError),
    ):
        with pytest.raises(error):
            await face.call("rebase", top, below, backing_format="qcow2")
        if error is not pyimago.ImagoError:
            with pytest.raises(error):
                await face.call(
                    "create", tmp_path / "new", format="qcow2", backing=below, backing_format="qcow2"
                )
    assert top.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["top.qcow2"]
