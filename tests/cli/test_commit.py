"""`commit`, `rebase` and `bench` beside qemu-img, and stopped in the middle of their work."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from tests.conftest import pattern

import pyimago as library

from .conftest import COMMAND

if TYPE_CHECKING:
    from .conftest import Run


class Chain(NamedTuple):
    """How a base, an image in the middle and one on top are made, and what is done to them."""

    base: tuple[str, ...] = ("-f", "qcow2", "6M")
    top: tuple[str, ...] = ("-o", "cluster_size=64k")
    size: str = "6M"
    changes: tuple[str, ...] = ("write -P 3 100k 1M", "write -z 2M 512k", "write -P 4 5M 70k")
    commit: tuple[str, ...] = ()


CHAINS = {
    "plain": Chain(),
    "to one by name": Chain(commit=("-b", "base")),
    "kept": Chain(commit=("-d",)),
    "quiet": Chain(commit=("-q",)),
    "larger": Chain(size="9M", changes=("write -P 3 7M 1M", "write -z 0 1M")),
    "smaller": Chain(size="3M", changes=("write -P 3 1M 1M",)),
    "raw base": Chain(base=("-f", "raw", "6M")),
    "larger over a raw base": Chain(base=("-f", "raw", "6M"), size="8M", commit=("-b", "base")),
    "version 2": Chain(top=("-o", "compat=0.10"), base=("-f", "qcow2", "-o", "compat=0.10", "6M")),
    "subclusters": Chain(top=("-o", "extended_l2=on"), changes=("write -P 3 102k 6k", "write -z 5M 8k")),
    "subclusters below": Chain(base=("-f", "qcow2", "-o", "extended_l2=on", "6M")),
    "small into large clusters": Chain(
        base=("-f", "qcow2", "-o", "cluster_size=2M", "6M"),
        top=("-o", "cluster_size=512"),
        changes=("write -P 3 1000k 3k", "write -P 4 3M 512", "write -z 4M 1k"),
    ),
    "compressed": Chain(changes=("write -c -P 3 64k 64k", "write -c -P 4 1M 640k", "write -P 5 70k 1k")),
    "data file": Chain(top=("-o", "data_file=data")),
    "nothing to do": Chain(changes=()),
}


def make(qemu_img: Run, qemu_io: Run, chain: Chain, folder: str) -> None:
    """The chain of images in `folder`."""
    *base, size = chain.base
    qemu_img("create", "-q", *base, f"{folder}/base", size)
    form = base[1]
    qemu_io("-f", form, "-c", "write -P 1 0 2M", "-c", "write -P 2 4900k 500k", f"{folder}/base")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", form, f"{folder}/middle", "5M")
    qemu_io("-c", "write -P 7 1500k 1M", "-c", "write -z 4900k 100k", f"{folder}/middle")
    below = "middle" if "-b" in chain.commit else "base"
    form = "qcow2" if below == "middle" else form
    # qemu-img takes the names of data files from the working directory.
    options = [text.replace("data_file=", f"data_file={folder}/") for text in chain.top]
    qemu_img("create", "-q", "-f", "qcow2", *options, "-b", below, "-F", form, f"{folder}/top", chain.size)
    for change in chain.changes:
        qemu_io("-c", change, f"{folder}/top")


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_commit_does_what_qemu_img_does(
    pyimago: Run, qemu_img: Run, qemu_io: Run, tmp_path: Path, chain: Chain
) -> None:
    for folder in ("ours", "theirs"):
        tmp_path.joinpath(folder).mkdir()
        make(qemu_img, qemu_io, chain, folder)
        qemu_img("convert", "-O", "raw", f"{folder}/top", f"{folder}/shown")
    if "data_file" in chain.top[-1]:
        pyimago("amend", "-o", "data_file=data", "ours/top")
    ours = pyimago("commit", *chain.commit, "ours/top")
    theirs = qemu_img("commit", *chain.commit, "theirs/top")
    assert (ours.stdout, ours.stderr) == (theirs.stdout, theirs.stderr)
    form = chain.base[1]
    qemu_img("compare", "-f", form, "-F", form, "ours/base", "theirs/base")
    sizes = [qemu_img("info", "-f", form, "--output=json", f"{of}/base").stdout for of in ("ours", "theirs")]
    assert len({json.loads(text)["virtual-size"] for text in sizes}) == 1
    if form == "qcow2":
        qemu_img("check", "-q", "ours/base")
    if "data_file" in chain.top[-1]:
        pyimago("amend", "-o", "data_file=ours/data", "ours/top")
    qemu_img("check", "-q", "ours/top")
    qemu_img("compare", "-f", "qcow2", "-F", "raw", "ours/top", "ours/shown")
    maps = [json.loads(qemu_img("map", "--output=json", f"{of}/top").stdout) for of in ("ours", "theirs")]
    held = [[run for run in runs if run["depth"] == 0 and run["present"]] for runs in maps]
    assert [len(runs) for runs in held] == [len(held[1])] * 2
    assert bool(held[0]) == bool(chain.commit and chain.commit != ("-q",) and chain.changes)


REFUSED = {
    "no backing file": ("base",),
    "no such base": ("-b", "elsewhere", "top"),
    "itself": ("-b", "top", "top"),
    "no such image": ("missing",),
    "no image at all": (),
    "no such rate": ("-r", "1x", "top"),
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED.keys())
def test_commit_refuses_what_qemu_img_refuses(
    pyimago: Run, qemu_img: Run, qemu_io: Run, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    make(qemu_img, qemu_io, Chain(), ".")
    before = [tmp_path.joinpath(name).read_bytes() for name in ("base", "top")]
    assert qemu_img("commit", *arguments, check=False).returncode == 1
    done = pyimago("commit", *arguments, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pyimago: ")
    assert len(done.stderr.splitlines()) == 1
    assert before == [tmp_path.joinpath(name).read_bytes() for name in ("base", "top")]


def test_encrypted_chains_take_their_secret_from_the_options(
    pyimago: Run, qemu_img: Run, qemu_io: Run
) -> None:
    secret = ("--object", "secret,id=s,data=sesame")
    layout = ("-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10")
    assert pyimago("create", *secret, "-f", "qcow2", *layout, "base", "4M").returncode == 0
    over = ("-b", "base", "-F", "qcow2")
    assert pyimago("create", *secret, "-f", "qcow2", *layout, *over, "top").returncode == 0

    def options(name: str) -> str:
        return f"driver=qcow2,encrypt.key-secret=s,file.filename={name}"

    def holds(name: str, byte: str) -> None:
        read = f"read -P {byte} 1M 64k"
        found = qemu_io(*secret, "--image-opts", options(name) + ",backing=", "-c", read)
        assert "verification failed" not in found.stdout, found

    writes = options("top") + ",backing.driver=qcow2,backing.encrypt.key-secret=s,backing.file.filename=base"
    assert qemu_io(*secret, "--image-opts", writes, "-c", "write -P 7 1M 64k").returncode == 0
    done = pyimago("commit", *secret, "--image-opts", options("top"))
    assert (done.returncode, done.stderr) == (0, "")
    holds("base", "7")
    assert pyimago("rebase", *secret, "--image-opts", "-b", "", options("top")).returncode == 0
    holds("top", "7")
    bench = ("bench", *secret, "--image-opts", "-c", "10", options("top"))
    assert pyimago(*bench).returncode == 0


def test_commit_keeps_snapshots(pyimago: Run, qemu_img: Run, qemu_io: Run) -> None:
    make(qemu_img, qemu_io, Chain(), ".")
    qemu_img("snapshot", "-c", "kept", "top")
    qemu_io("-c", "write -P 9 1M 1M", "top")
    qemu_img("convert", "-O", "raw", "top", "shown")
    before = pyimago("snapshot", "-l", "top").stdout
    pyimago("commit", "top")
    assert pyimago("snapshot", "-l", "top").stdout == before
    qemu_img("check", "-q", "top")
    qemu_img("compare", "-f", "qcow2", "-F", "raw", "base", "shown")
    qemu_img("compare", "-f", "qcow2", "-F", "raw", "top", "shown")
    qemu_img("convert", "-l", "snapshot.name=kept", "-O", "raw", "top", "snapshot")


REBASES = {
    "to another": ("-b", "other", "-F", "qcow2"),
    "to the one below": ("-b", "base", "-F", "qcow2"),
    "to none": ("-b", ""),
    "compressing": ("-c", "-b", "other", "-F", "qcow2"),
    "compressing, to none": ("-c", "-b", ""),
    "by name only": ("-u", "-b", "elsewhere", "-F", "raw"),
    "without a format": ("-b", "other"),
    "to a missing one": ("-b", "missing", "-F", "qcow2"),
    "onto itself": ("-b", "top", "-F", "qcow2"),
    "to nothing said": (),
}


@pytest.mark.parametrize("arguments", REBASES.values(), ids=REBASES.keys())
def test_rebase_does_what_qemu_img_does(
    pyimago: Run, qemu_img: Run, qemu_io: Run, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    for folder in ("ours", "theirs"):
        tmp_path.joinpath(folder).mkdir()
        make(qemu_img, qemu_io, Chain(commit=("-b", "base")), folder)
        qemu_img("create", "-q", "-f", "qcow2", f"{folder}/other", "4M")
        qemu_io("-c", "write -P 1 512k 2M", f"{folder}/other")
        qemu_img("convert", "-O", "raw", f"{folder}/top", f"{folder}/shown")
    ours = pyimago("rebase", *arguments, "ours/top", check=False)
    theirs = qemu_img("rebase", *arguments, "theirs/top", check=False)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
    told = [
        json.loads(qemu_img("info", "--output=json", f"{of}/top").stdout).get("backing-filename")
        for of in ("ours", "theirs")
    ]
    assert told[0] == told[1]
    if "elsewhere" not in arguments:
        qemu_img("check", "-q", "ours/top")
        qemu_img("compare", "-f", "qcow2", "-F", "raw", "ours/top", "ours/shown")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A chain with enough to do: `old` and `top` hold 48 MiB each; `shown` is what `top` shows."""
    size, step = 96 << 20, 2 << 20
    for name, backing, first in (("base", None, 0), ("old", "base", 0), ("top", "old", 1 << 20)):
        path = tmp_path / name
        options = {"backing": backing, "backing_format": "qcow2"} if backing else {}
        library.create(path, size, format="qcow2", **options)  # type: ignore[arg-type]
        if backing:
            with library.open(path, format="qcow2", write=True) as image:
                for at in range(first, size, step):
                    image.write(pattern(at >> 20, 1 << 20), at)
    library.convert(tmp_path / "top", tmp_path / "shown", source_format="qcow2")
    return tmp_path


WORK = {
    "commit": (("commit", "-b", "base", "top"), ("commit", "old")),
    "commit and empty": (("commit", "top"), ("commit", "top")),
    "rebase": (("rebase", "-b", "", "top"), ("rebase", "-b", "", "top")),
}


def still_whole(qemu_img: Run, names: tuple[str, ...] = ("base", "old", "top")) -> None:
    """All images are sound, leaks apart, and show what they showed."""
    for name in names:
        assert qemu_img("check", "-q", name, check=False).returncode in {0, 3}, name
    qemu_img("compare", "-f", "qcow2", "-F", "raw", "top", "shown")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("work", WORK.values(), ids=WORK.keys())
def test_a_signal_at_any_moment_leaves_what_was_shown(
    pyimago: Run, qemu_img: Run, images: Path, work: tuple[tuple[str, ...], ...], number: signal.Signals
) -> None:
    stopped = 0
    for delay in (0, 0.02, 0.05, 0.1):
        with subprocess.Popen(
            [COMMAND, *work[0], "--progress=json"],
            cwd=images,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as child:
            assert child.stderr is not None
            # The first line comes when the work begins.
            assert child.stderr.readline()
            time.sleep(delay)
            child.send_signal(number)
            child.stderr.read()
        stopped += child.returncode == -number
        assert child.returncode in {0, -number}
        still_whole(qemu_img)
    assert stopped
    pyimago(*work[0])
    still_whole(qemu_img)


@pytest.mark.parametrize("work", WORK.values(), ids=WORK.keys())
def test_a_full_medium_leaves_what_was_shown(
    pyimago: Run, qemu_img: Run, images: Path, work: tuple[tuple[str, ...], ...]
) -> None:
    largest = max(images.joinpath(name).stat().st_size for name in ("base", "old", "top"))
    limit = 20 << 20 if work[0][-2] == "base" else largest + (10 << 20)

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [COMMAND, *work[0]],
        cwd=images,
        preexec_fn=full,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"pyimago: .*: File too large.*\n", done.stderr)
    still_whole(qemu_img)
    pyimago(*work[0])
    still_whole(qemu_img)


def test_commit_keeps_to_a_rate(pyimago: Run, images: Path) -> None:
    with subprocess.Popen(
        [COMMAND, "commit", "-r", "1M", "top"], cwd=images, stderr=subprocess.PIPE
    ) as child:
        time.sleep(1.5)
        assert child.poll() is None
        start = time.monotonic()
        child.send_signal(signal.SIGINT)
        child.wait()
        assert time.monotonic() - start < 30
    assert child.returncode == -signal.SIGINT
    pyimago("commit", "-q", "top")


BENCHES = {
    "read": ("-c", "100", "image"),
    "few": ("-c", "10", "-d", "2", "-s", "8k", "-S", "64k", "-o", "1M", "image"),
    "write": ("-w", "-c", "100", "--pattern", "7", "-q", "image"),
    "flush": ("-w", "-c", "1000", "-d", "4", "--flush-interval=10", "image"),
    "no drain": ("-w", "-c", "100", "-d", "4", "--flush-interval=10", "--no-drain", "image"),
    "shared": ("-U", "-c", "10", "image"),
    "past the cache": ("-t", "none", "-n", "-c", "100", "image"),
    "durable": ("-t", "directsync", "-w", "-c", "20", "image"),
    "behind the end": ("-o", "101M", "-c", "3", "image"),
    "flush of reads": ("--flush-interval=10", "image"),
    "flush too often": ("-w", "-d", "16", "--flush-interval=10", "image"),
    "no requests": ("-c", "0", "image"),
    "no depth": ("-d", "0", "image"),
    "too long": ("-s", "3G", "image"),
    "no byte": ("--pattern", "256", "image"),
    "no engine": ("-i", "foo", "image"),
    "native in the cache": ("-i", "native", "image"),
    "no cache mode": ("-t", "foo", "image"),
    "shared and written": ("-U", "-w", "image"),
    "missing": ("missing",),
    "count with a suffix": ("-c", "1k", "image"),
    "nothing": (),
}


@pytest.mark.parametrize("arguments", BENCHES.values(), ids=BENCHES.keys())
def test_bench_prints_what_qemu_img_prints(
    pyimago: Run, qemu_img: Run, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    def lines(run: Run) -> tuple[int, list[str]]:
        qemu_img("create", "-q", "-f", "qcow2", "image", "100M")
        done = run("bench", *arguments, check=False)
        return done.returncode, re.sub(r"\d+\.\d+", "SECONDS", done.stdout).splitlines()

    theirs, content = lines(qemu_img), library.map(tmp_path / "image")
    ours = lines(pyimago)
    assert ours == theirs
    # Requests at once take their clusters in any order.
    written = [
        {
            cluster
            for run in runs
            if run.data
            for cluster in range(run.offset // 65536, -(-(run.offset + run.length) // 65536))
        }
        for runs in (content, library.map(tmp_path / "image"))
    ]
    assert written[0] == written[1]


def test_bench_writes_the_byte(pyimago: Run, tmp_path: Path) -> None:
    pyimago("create", "image", "1M")
    pyimago("bench", "-f", "raw", "-w", "-c", "4", "-S", "8k", "--pattern", "65", "image")
    assert tmp_path.joinpath("image").read_bytes()[:32768] == (b"A" * 4096 + bytes(4096)) * 4
    assert os.path.getsize(tmp_path / "image") == 1 << 20  # noqa: PTH202
