"""Compressed writing through both classes and by `convert`, with QEMU as the judge."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import Qemu, pattern

import pyimago
import pyimago.aio

if TYPE_CHECKING:
    from pathlib import Path

    from tests.face import Face

SIZE = (3 << 20) + 1536
CONTENT = pattern(5, 1 << 20) + bytes(1 << 20) + pattern(6, SIZE - (2 << 20))

LAYOUTS: dict[str, dict[str, Any]] = {
    "default": {},
    "zstd": {"compression_type": "zstd"},
    "version 2, small clusters": {"version": 2, "cluster_size": 4096},
    "subclusters": {"extended_l2": True},
    "no shared clusters": {"refcount_bits": 1},
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


async def convert(face: Face, source: Path, target: Path, **options: Any) -> None:
    if face.name == "sync":
        pyimago.convert(source, target, **options)
    else:
        await pyimago.aio.convert(source, target, **options)


@layouts
async def test_qemu_reads_compressed_writes(
    face: Face, tmp_path: Path, qemu: Qemu, layout: dict[str, Any]
) -> None:
    path = tmp_path / "image.qcow2"
    pyimago.create(path, SIZE, format="qcow2", **layout)
    async with face.open(path, write=True) as image:
        await image.write_compressed(CONTENT, 0)
        await image.write_compressed(memoryview(CONTENT)[: 1 << 20], 1 << 20, level=9)
        await image.write(b"plain", 70_000)
        assert any(extent.compressed for extent in await image.extents())
    wanted = bytearray(CONTENT)
    wanted[1 << 20 : 2 << 20] = CONTENT[: 1 << 20]
    wanted[70_000:70_005] = b"plain"
    qemu.assert_clean(path)
    assert qemu.content(path) == wanted
    # With one bit every compressed cluster has a host cluster of its own.
    assert layout.get("refcount_bits") == 1 or path.stat().st_size < SIZE // 2
    async with face.open(path) as image:
        assert await image.content() == wanted


@layouts
async def test_a_compressed_conversion_is_small_and_right(
    face: Face, tmp_path: Path, qemu: Qemu, layout: dict[str, Any]
) -> None:
    source, target = tmp_path / "source.raw", tmp_path / "target.qcow2"
    source.write_bytes(CONTENT)
    await convert(face, source, target, source_format="raw", format="qcow2", compress=True, **layout)
    qemu.assert_clean(target)
    assert qemu.content(target) == CONTENT
    assert layout.get("refcount_bits") == 1 or target.stat().st_size < SIZE // 2
    assert target.stat().st_size % 512 == 0
    with pyimago.open(target) as image:
        assert all(extent.compressed for extent in image.extents() if extent.data)
        # Nothing takes space for the zeroes.
        assert sum(extent.length for extent in image.extents() if extent.data) < SIZE - (900 << 10)


async def test_a_level_changes_the_size(face: Face, tmp_path: Path) -> None:
    source = tmp_path / "source.raw"
    source.write_bytes("".join(f"{n * 7919 % 10007} " for n in range(200_000)).encode())
    sizes = []
    for level in (1, 9):
        target = tmp_path / f"{level}.qcow2"
        options: dict[str, Any] = {"compress": True, "compression_level": level}
        await convert(face, source, target, format="qcow2", **options)
        sizes.append(target.stat().st_size)
    assert sizes[1] < sizes[0]


async def test_what_cannot_be_compressed_is_refused_untouched(face: Face, tmp_path: Path) -> None:
    path, raw = tmp_path / "image.qcow2", tmp_path / "raw"
    pyimago.create(path, SIZE, format="qcow2")
    before = path.read_bytes()
    async with face.open(path, write=True) as image:
        for data, offset, options, about in [
            (bytes(65_536), 512, {}, "whole clusters"),
            (bytes(1000), 0, {}, "whole clusters"),
            (bytes(65_536), SIZE, {}, "end"),
            (bytes(65_536), -1, {}, "out of range"),
            (bytes(65_536), 0, {"level": 0}, "levels 1 to 9"),
            (bytes(65_536), 0, {"level": 10}, "levels 1 to 9"),
            (bytes(65_536), 0, {"level": -1}, "no compression level"),
        ]:
            with pytest.raises(ValueError, match=about):
                await image.write_compressed(data, offset, **options)
        with pytest.raises(TypeError):
            await image.write_compressed(bytes(65_536), 0, level="9")
    async with face.open(path) as image:
        with pytest.raises(io.UnsupportedOperation, match="write=True"):
            await image.write_compressed(bytes(65_536), 0)
    assert path.read_bytes() == before
    raw.write_bytes(CONTENT)
    async with face.open(raw, write=True, format="raw") as image:
        with pytest.raises(pyimago.UnsupportedFeatureError, match="raw has no compressed clusters"):
            await image.write_compressed(bytes(65_536), 0)
    assert raw.read_bytes() == CONTENT


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "raw": ({"format": "raw", "compress": True}, "raw has no compressed clusters"),
    "level": ({"compress": True, "compression_level": 10}, "levels 1 to 9"),
    "level of zstd": (
        {"compress": True, "compression_level": 23, "compression_type": "zstd"},
        "levels 1 to 22",
    ),
    "level alone": ({"compression_level": 5}, "without compress"),
    "preallocation": ({"compress": True, "preallocation": "full"}, "preallocation"),
}


@pytest.mark.parametrize(("options", "about"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_conversion_that_cannot_be_is_refused_untouched(
    face: Face, tmp_path: Path, options: dict[str, Any], about: str
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(CONTENT)
    target.write_bytes(b"precious")
    with pytest.raises((ValueError, pyimago.UnsupportedFeatureError), match=about):
        await convert(face, source, target, **{"format": "qcow2", "source_format": "raw", **options})
    assert target.read_bytes() == b"precious"
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target"}
