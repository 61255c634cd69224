"""Random operations through both classes against a plain `bytearray`."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.face import Face

import pyimago

SIZE = 3 * 65_536 + 512
CLUSTERS = (512, 4096, 65_536)

offsets = st.one_of(
    st.integers(0, SIZE),
    st.builds(
        lambda cluster, index, beside: min(SIZE, max(0, cluster * index + beside)),
        st.sampled_from(CLUSTERS),
        st.integers(0, 400),
        st.integers(-2, 2),
    ),
)
operations = st.lists(
    st.tuples(
        st.sampled_from(["write", "write_compressed", "write_zeroes", "read", "flush"]),
        offsets,
        offsets,
        st.integers(0, 255),
    ),
    max_size=12,
)


async def play(face: Face, path: Path, cluster_size: int, script: list[tuple[str, int, int, int]]) -> None:
    model = bytearray(SIZE)
    async with face.open(path, write=True) as image:
        for what, one, other, seed in script:
            start, end = sorted((one, other))
            if what == "write":
                data = bytes((at * 31 + seed) & 255 for at in range(start, end))
                model[start:end] = data
                await image.write(data, start)
            elif what == "write_compressed":
                # Whole clusters of that range, to the disk's end if it reaches so far.
                start = start // cluster_size * cluster_size
                end = min(SIZE, -(-end // cluster_size) * cluster_size)
                data = bytes(((at >> 4) * 31 + seed) & 255 for at in range(start, end))
                model[start:end] = data
                await image.write_compressed(data, start)
            elif what == "write_zeroes":
                model[start:end] = bytes(end - start)
                await image.write_zeroes(start, end - start)
            elif what == "read":
                assert await image.pread(end - start, start) == model[start:end]
            else:
                await image.flush()
    async with face.open(path) as image:
        assert await image.content() == model


@settings(max_examples=40, deadline=None)
@given(cluster_size=st.sampled_from(CLUSTERS), awaited=st.booleans(), script=operations)
def test_scripts_read_back_what_they_wrote(
    cluster_size: int, awaited: bool, script: list[tuple[str, int, int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.qcow2"
        pyimago.create(path, SIZE, format="qcow2", cluster_size=cluster_size)
        asyncio.run(play(Face("awaited" if awaited else "sync"), path, cluster_size, script))
