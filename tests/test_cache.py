"""The caches of an image's metadata: how big they are, how they did."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.face import Face, settle

import pyimago

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An image of 128 L2 tables."""
    path = tmp_path / "image.qcow2"
    pyimago.create(path, 4 * MIB, format="qcow2", cluster_size=512)
    with pyimago.open(path, write=True, format="qcow2") as image:
        image.write(bytes([7]) * 4 * MIB, 0)
    return path


async def test_hits_and_misses_are_told(face: Face, path: Path) -> None:
    async with face.open(path, format="qcow2", l2_cache_size=16 * 512) as image:
        for _ in range(2):
            for at in range(0, 4 * MIB, 32 * KIB):
                assert await image.pread(512, at) == bytes([7]) * 512
        stats = image.raw.cache_stats()
    assert stats is not None
    assert stats.l2.misses == 256
    assert stats.l2.used == stats.l2.capacity == 16 * 512
    assert stats.refcount == pyimago.CacheUse(hits=0, misses=0, capacity=stats.refcount.capacity, used=0)
    with pytest.raises(AttributeError):
        stats.l2.hits = 0  # type: ignore[misc] # frozen
    with pytest.raises(pyimago.ImageClosedError):
        image.raw.cache_stats()


async def test_refcounts_have_a_size_too(face: Face, path: Path) -> None:
    async with face.open(path, write=True, format="qcow2", refcount_cache_size=512) as image:
        await image.discard(0, MIB)
        await image.flush()
        stats = image.raw.cache_stats()
    assert stats is not None
    assert stats.refcount.capacity == 512
    assert stats.refcount.misses > 0


async def test_sizes_are_set_step_by_step(face: Face, path: Path) -> None:
    opened = pyimago.Qcow2.open_path_sync(path) if face.name == "sync" else pyimago.Qcow2.open_path(path)
    qcow2 = await settle(opened)
    qcow2.set_cache_sizes(l2_cache_size=MIB)
    with pyimago.SyncFormatAccess(qcow2) as image:
        stats = image.cache_stats()
    assert isinstance(stats, pyimago.CacheStats)
    assert stats.l2.capacity == MIB


async def test_raw_images_have_none(face: Face, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(512))
    async with face.open(raw, format="raw") as image:
        assert image.raw.cache_stats() is None
    with pytest.raises(ValueError, match="raw"):
        async with face.open(raw, format="raw", l2_cache_size=1):
            pass
    with pytest.raises(ValueError, match="out of range"):
        async with face.open(raw, format="raw", l2_cache_size=-1):
            pass
