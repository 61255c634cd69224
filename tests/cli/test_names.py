"""The same words for `pyimago` and `qemu-img`: names of images, and what each subcommand takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.cli.conftest import COMMAND, runner
from tests.conftest import installed

import pyimago

if TYPE_CHECKING:
    from collections.abc import Sequence
    from subprocess import CompletedProcess

    from .conftest import Run

SECRET = ("--object", "secret,id=s,file=key")
QCOW2 = "driver=qcow2,file.driver=file,file.filename=data.qcow2"
LUKS = "driver=qcow2,file.filename=vault.qcow2,encrypt.key-secret=s"
PART = "driver=raw,offset=65536,size=131072,file.filename=data.raw"
TOP = "driver=qcow2,file.filename=top.qcow2"
OVER_RAW = TOP + ",backing.driver=raw,backing.file.filename=data.raw"
OVER_NOTHING = TOP + ",backing.driver=raw,backing.file.filename=nowhere"
MOVED = "driver=qcow2,file.filename=moved.qcow2,data-file.driver=file,data-file.filename=moved.raw"
WRAPPED = "driver=qcow2,file.driver=raw,file.offset=512,file.file.filename=wrapped-top"
NESTED = (
    "driver=qcow2,file.driver=raw,file.offset=64k,file.file.driver=qcow2,file.file.file.filename=nested.qcow2"
)
THIRD = "driver=qcow2,file.filename=third.qcow2,backing.driver=qcow2,backing.file.filename=top.qcow2"
BUNDLE = "driver=qcow2,file.driver=raw,file.offset=1M,file.file.filename=bundle"
JSON = 'json:{"driver": "qcow2", "file": {"driver": "file", "filename": "data.qcow2"}}'

READS: dict[str, tuple[str, ...]] = {
    # Names
    "file:": ("info", "file:data.qcow2"),
    "image-opts": ("info", "--image-opts", QCOW2),
    "image-opts, probed": ("info", "--image-opts", "file.filename=data.qcow2"),
    "image-opts, raw": ("info", "--output=json", "--image-opts", "driver=raw,file.filename=data.qcow2"),
    "image-opts, a comma": ("info", "--image-opts", "driver=raw,file.filename=with,,comma"),
    "image-opts, much": (
        *("info", "--image-opts"),
        QCOW2 + ",read-only=on,l2-cache-size=1M,cache.direct=off,node-name=x,discard=unmap,file.locking=off",
    ),
    "image-opts, map": ("map", "--output=json", "--image-opts", QCOW2),
    "image-opts, a part": ("map", "--output=json", "--image-opts", PART),
    "image-opts, a part compared": ("compare", "--image-opts", PART, "driver=raw,file.filename=part.raw"),
    "image-opts, no backing": (
        "map",
        "--output=json",
        'json:{"backing": null, "file.filename": "top.qcow2"}',
    ),
    "image-opts, other backing": (
        *("compare", "--image-opts"),
        "driver=qcow2,file.filename=top.qcow2,backing.driver=raw,backing.file.filename=data.raw",
        "driver=raw,file.filename=data.raw",
    ),
    "image-opts, encrypted": ("compare", *SECRET, "--image-opts", LUKS, "driver=raw,file.filename=data.raw"),
    "object, JSON": (
        *(
            "compare",
            "--object",
            '{"qom-type": "secret", "id": "s", "data": "b3BlbiBzZXNhbWU=", "format": "base64"}',
        ),
        *("--image-opts", LUKS, "driver=raw,file.filename=data.raw"),
    ),
    "image-opts, a partition within qcow2": (
        *("compare", "--image-opts", "driver=raw,file.filename=part.raw"),
        "driver=raw,offset=65536,size=131072,file.driver=qcow2,file.file.filename=data.qcow2",
    ),
    "image-opts, qcow2 in a part": (
        *("compare", "--image-opts", "driver=raw,file.filename=data.raw"),
        "driver=qcow2,file.driver=raw,file.offset=512,file.file.driver=file,file.file.filename=wrapped",
    ),
    "image-opts, a chain in one file": (
        *("compare", "--image-opts", "driver=raw,file.filename=data.raw"),
        BUNDLE + ",backing.driver=raw,backing.size=1M,backing.file.filename=bundle",
    ),
    "image-opts, a data file": ("info", "--output=json", "--image-opts", MOVED),
    "image-opts, a data file that is not looked at": (
        *("info", "--image-opts"),
        "driver=qcow2,file.filename=moved.qcow2,data-file.driver=file,data-file.filename=nowhere",
    ),
    "image-opts, nothing below": ("info", 'json:{"file.filename": "top.qcow2", "backing": null}'),
    "json:": ("info", JSON),
    "json:, flat": ("info", 'json:{"driver": "qcow2", "file.filename": "data.qcow2"}'),
    "json:, single quotes": ("info", "json:{'driver': 'qcow2', 'file': {'filename': 'data.qcow2'}}"),
    "json:, a part": (
        *("compare", "-F", "raw"),
        'json:{"driver": "raw", "offset": 65536, "size": "131072", "file": {"filename": "data.raw"}}',
        "part.raw",
    ),
    "json: and a format": (
        "info",
        "-f",
        "qcow2",
        'json:{"file": {"driver": "file", "filename": "data.qcow2"}}',
    ),
    "json: and another format": ("info", "-f", "raw", JSON),
    "-U": ("info", "-U", "data.qcow2"),
    "--force-share": ("map", "--output=json", "--force-share", "top.qcow2"),
    # Subcommands
    "info": ("info", "--output=json", "snapshots.qcow2"),
    "info, encrypted": ("info", "vault.qcow2"),
    "info -b": ("info", "-b", "top.qcow2"),
    "info --backing-chain": ("info", "--backing-chain", "--output", "json", "-f", "qcow2", "top.qcow2"),
    "info, options behind": ("info", "data.qcow2", "--output=json"),
    "map": ("map", "data.raw", "-f", "raw"),
    "map, a range": ("map", "--start-offset=64k", "--max-length=100k", "--output=json", "top.qcow2"),
    "map -s -l": ("map", "-s", "0x10000", "-l", "1.5k", "--output=json", "top.qcow2"),
    "map, past the end": ("map", "--start-offset=3M", "--output=json", "data.raw"),
    "check": ("check", "data.qcow2"),
    "check -q": ("check", "-q", "-f", "qcow2", "data.qcow2"),
    "check, JSON": ("check", "--output=json", "data.qcow2"),
    "check -U": ("check", "-U", "data.qcow2"),
    "check -T none": ("check", "-T", "writethrough", "data.qcow2"),
    "check, image-opts": ("check", "--image-opts", "--output=json", QCOW2),
    "check, a data file": ("check", "--output=json", "--image-opts", MOVED),
    "check, a backing file": ("check", "--image-opts", OVER_RAW),
    "check, a part": ("check", "--image-opts", WRAPPED),
    "check, an image within an image": ("check", "--image-opts", NESTED),
    "compare, a data file": ("compare", "--image-opts", MOVED, TOP),
    "compare, equal": ("compare", "data.qcow2", "data.raw"),
    "compare -q": ("compare", "-q", "-f", "qcow2", "-F", "raw", "data.qcow2", "data.raw"),
    "compare, unequal": ("compare", "data.qcow2", "top.qcow2"),
    "compare -s": ("compare", "-s", "data.qcow2", "data.raw"),
    "compare -s, sizes": ("compare", "-s", "data.raw", "part.raw"),
    "compare, sizes": ("compare", "data.raw", "longer.raw"),
    "compare -U -T": ("compare", "-U", "-T", "unsafe", "data.qcow2", "data.raw"),
    "measure": ("measure", "-O", "qcow2", "top.qcow2"),
    "measure, a size": ("measure", "--size", "1G", "-O", "qcow2", "--output=json"),
    "measure, bitmaps": ("measure", "-O", "qcow2", "--output=json", "bitmaps.qcow2"),
    "measure -l": ("measure", "-O", "qcow2", "-l", "first", "snapshots.qcow2"),
    "measure -l snapshot.id": ("measure", "-O", "qcow2", "-l", "snapshot.id=1", "snapshots.qcow2"),
    "measure -l snapshot.name": ("measure", "-O", "qcow2", "-l", "snapshot.name=1", "snapshots.qcow2"),
    "measure -l both": (
        *("measure", "-O", "qcow2", "-l", "snapshot.id=2,snapshot.name=1", "--image-opts"),
        "driver=qcow2,file.filename=snapshots.qcow2",
    ),
    "measure -l, id first": ("measure", "-O", "qcow2", "-l", "1", "snapshots.qcow2"),
    "measure -o": ("measure", "-O", "qcow2", "-o", "cluster_size=4k,preallocation=full", "data.raw"),
    "measure, full": ("measure", "-O", "qcow2", "-o", "preallocation=full", "--size", "10M"),
    "measure, falloc": ("measure", "-O", "qcow2", "-o", "preallocation=falloc", "top.qcow2"),
    "measure, image-opts": ("measure", "--image-opts", "-O", "qcow2", "--output=json", PART),
    "snapshot": ("snapshot", "snapshots.qcow2"),
    "snapshot -l": ("snapshot", "-l", "-U", "-f", "qcow2", "snapshots.qcow2"),
    "snapshot, none": ("snapshot", "--list", "data.qcow2"),
    "snapshot, over another": ("snapshot", "--image-opts", OVER_RAW),
    "snapshot, image-opts": ("snapshot", "--image-opts", "driver=qcow2,file.filename=snapshots.qcow2"),
}

FAILURES: dict[str, tuple[str, ...]] = {
    "no driver": ("info", "--image-opts", "driver=bogus,file.filename=data.qcow2"),
    "no option": ("info", "--image-opts", QCOW2 + ",colour=red"),
    "no option of the file": ("info", "--image-opts", QCOW2 + ",file.colour=red"),
    "info, below": ("info", "--image-opts", OVER_RAW),
    "info -b, below": ("info", "-b", "--image-opts", OVER_RAW),
    "bitmap, below": ("bitmap", "--add", "--image-opts", OVER_RAW, "b"),
    "rebase -u, below": ("rebase", "-u", "-b", "data.raw", "-F", "raw", "--image-opts", OVER_RAW),
    "raw over another": (
        "map",
        "--image-opts",
        "driver=raw,file.filename=data.raw,backing.driver=raw,backing.file.filename=moved.raw",
    ),
    "raw with a data file": (
        *("map", "--image-opts"),
        "driver=raw,file.filename=data.raw,data-file.driver=file,data-file.filename=moved.raw",
    ),
    "check, no such backing file": ("check", "--image-opts", OVER_NOTHING),
    "amend, no such backing file": ("amend", "-o", "compat=0.10", "--image-opts", OVER_NOTHING),
    "commit, no such backing file": ("commit", "--image-opts", OVER_NOTHING),
    "check, no such data file": ("check", "moved.qcow2"),
    "check, a data file of none": (
        *("check", "--image-opts"),
        QCOW2 + ",data-file.driver=file,data-file.filename=moved.raw",
    ),
    "no file": ("info", "--image-opts", "driver=qcow2,filename=data.qcow2"),
    "a plain name": ("info", "--image-opts", "data.qcow2"),
    "a node's name": ("info", 'json:{"driver": "qcow2", "file": "x"}'),
    "no JSON": ("info", 'json:{"driver": '),
    "no object": ("info", "json:[1]"),
    "one key twice": ("info", 'json:{"driver": "raw", "driver": "qcow2", "file.filename": "data.qcow2"}'),
    "both": ("info", "-f", "qcow2", "--image-opts", QCOW2),
    "format": ("info", "-f", "bogus", "data.qcow2"),
    "protocol": ("info", "nbd:unix:/nowhere"),
    "share, denied": ("info", "-U", "--image-opts", QCOW2 + ",force-share=off"),
    "share and write": ("snapshot", "-U", "-c", "x", "data.qcow2"),
    "share and repair": ("check", "-U", "-r", "all", "data.qcow2"),
    "read-only and written": ("resize", "--image-opts", QCOW2 + ",read-only=on", "2M"),
    "secret": ("map", "--image-opts", LUKS),
    "secret, missing": ("map", "vault.qcow2"),
    "object": ("info", "--object", "bogus,id=x", "data.qcow2"),
    "object, JSON": ("info", "--object", '{"qom-type": "secret"', "data.qcow2"),
    "object, nothing": ("info", "--object", "", "data.qcow2"),
    "trees, too deep": ("info", "json:" + '{"file":' * 3000 + "1" + "}" * 3000),
    "object, a word": ("info", "--object", "secret,id=s,data=x,colour=red", "data.qcow2"),
    "part, too large": ("info", "--image-opts", "driver=raw,size=4M,file.filename=data.raw"),
    "part, no number": ("info", "--image-opts", "driver=raw,size=4X,file.filename=data.raw"),
    "cache": ("check", "-T", "bogus", "data.qcow2"),
    "cache of compare": ("compare", "-T", "bogus", "data.qcow2", "data.raw"),
    "missing of compare": ("compare", "data.qcow2", "nowhere"),
    "format of compare": ("compare", "-f", "bogus", "data.qcow2", "data.raw"),
    "one image to compare": ("compare", "data.qcow2"),
    "no image": ("info",),
    "two images": ("info", "data.qcow2", "data.raw"),
    "repair": ("check", "-r", "bogus", "data.qcow2"),
    "check raw": ("check", "data.raw"),
    "offset": ("map", "--start-offset=64x", "data.raw"),
    "measure both": ("measure", "--size", "1M", "data.raw"),
    "measure neither": ("measure", "-O", "qcow2"),
    "measure -f": ("measure", "--size", "1M", "-f", "raw"),
    "measure -O": ("measure", "--size", "1M", "-O", "bogus"),
    "measure -l": ("measure", "-l", "nowhere", "snapshots.qcow2"),
    "measure -l, both": ("measure", "-l", "snapshot.id=1,snapshot.name=1", "snapshots.qcow2"),
    "measure -l, no id": ("measure", "-l", "snapshot.id=first", "snapshots.qcow2"),
    "measure -l, no word": ("measure", "-l", "snapshot.id=1,snapshot.colour=red", "snapshots.qcow2"),
    "convert -l, both": ("convert", "-l", "snapshot.name=first,snapshot.id=2", "snapshots.qcow2", "new"),
    "snapshot -l -l": ("snapshot", "-l", "-l", "snapshots.qcow2"),
    "snapshot -c -c": ("snapshot", "-c", "a", "-c", "b", "data.qcow2"),
    "amend, encryption": ("amend", "-o", "encrypt.format=luks", "data.qcow2"),
    "amend, a cipher": ("amend", "-o", "encrypt.cipher-alg=aes-128", "data.qcow2"),
    "bitmap --merge, no file": ("bitmap", "--add", "--merge", "x", "-b", "nowhere", "data.qcow2", "b"),
    "measure, less than nothing": ("measure", "-O", "qcow2", "--size", "-1"),
    "snapshot -l -c": ("snapshot", "-l", "-c", "x", "data.qcow2"),
    "snapshot -d": ("snapshot", "-d", "nowhere", "snapshots.qcow2"),
    "snapshot -a": ("snapshot", "-a", "nowhere", "snapshots.qcow2"),
    "snapshot, raw": ("snapshot", "-c", "x", "-f", "raw", "data.raw"),
    "resize, less": ("resize", "data.qcow2", "512k"),
    "resize, nothing": ("resize", "data.qcow2", "0"),
    "resize, below nothing": ("resize", "data.qcow2", "-1G"),
    "resize, no size": ("resize", "data.qcow2", "1x"),
    "resize, no preallocation": ("resize", "--preallocation=bogus", "data.qcow2", "2M"),
    "resize, preallocation and less": (
        *("resize", "--preallocation=full", "--shrink", "data.qcow2", "512k"),
    ),
    "bitmap, no action": ("bitmap", "data.qcow2", "b"),
    "bitmap, no name": ("bitmap", "--add", "data.qcow2"),
    "bitmap, granularity": ("bitmap", "--add", "-g", "3", "data.qcow2", "b"),
    "bitmap -g without --add": ("bitmap", "--remove", "-g", "64k", "data.qcow2", "b"),
    "bitmap -F without -b": ("bitmap", "--merge", "x", "-F", "qcow2", "data.qcow2", "b"),
    "bitmap -b without --merge": ("bitmap", "--add", "-b", "data.qcow2", "data.qcow2", "b"),
    "bitmap, not there": ("bitmap", "--remove", "data.qcow2", "b"),
    "amend, nothing": ("amend", "data.qcow2"),
    "amend, cache": ("amend", "-t", "bogus", "-o", "compat=1.1", "data.qcow2"),
    "amend, raw": ("amend", "-f", "raw", "-o", "compat=1.1", "data.raw"),
    "commit, cache": ("commit", "-t", "bogus", "top.qcow2"),
    "amend, a disk within an image": (
        *(
            "amend",
            "-o",
            "compat=0.10",
            "--image-opts",
            "driver=raw,file.driver=qcow2,file.file.filename=data.qcow2",
        ),
    ),
    "commit, a disk within an image": (
        *("commit", "--image-opts", "driver=raw,file.driver=qcow2,file.file.filename=top.qcow2"),
    ),
    "commit, nothing below": ("commit", 'json:{"file.filename": "top.qcow2", "backing": null}'),
    "commit, no such base": ("commit", "-b", "base.qcow2", "--image-opts", OVER_RAW),
    "commit, no such file": ("commit", "-b", "nowhere", "--image-opts", WRAPPED),
    "commit, both": ("commit", "-f", "qcow2", "--image-opts", "driver=qcow2,file.filename=top.qcow2"),
    "bench, both": ("bench", "-c", "1", "-f", "qcow2", "--image-opts", QCOW2),
    "rebase, nothing": ("rebase", "data.qcow2"),
    "rebase, a disk within an image": (
        *("rebase", "-b", "", "--image-opts", "driver=raw,file.driver=qcow2,file.file.filename=top.qcow2"),
    ),
    "rebase -u, a raw image": ("rebase", "-u", "-b", "", "-f", "raw", "top.qcow2"),
    "rebase, no file": ("rebase", "-b", "nowhere", "-F", "raw", "data.qcow2"),
    "rebase, format": ("rebase", "-u", "-b", "data.raw", "-F", "bogus", "data.qcow2"),
    "rebase, cache": ("rebase", "-u", "-b", "", "-t", "bogus", "data.qcow2"),
    "rebase, backing's cache": ("rebase", "-b", "data.raw", "-F", "raw", "-T", "bogus", "top.qcow2"),
    "create, format without backing": ("create", "-f", "qcow2", "-F", "qcow2", "new", "1M"),
    "create, no size": ("create", "-f", "qcow2", "-u", "-b", "nowhere", "-F", "raw", "new"),
    "create, no format of the backing file": ("create", "-f", "qcow2", "-u", "-b", "nowhere", "new", "1M"),
    "create, two sizes": ("create", "-f", "qcow2", "-o", "size=1M", "new", "1M"),
    "create, part of a byte": ("create", "new", "1.5"),
    "create, no options": ("create", "-o", "", "new", "1M"),
    "create, a comma too many": ("create", "-f", "qcow2", "-o", "cluster_size=4k,", "new", "1M"),
    "convert, no format at all": ("convert", "-O", "", "data.raw", "new"),
    "object, twice": ("info", *SECRET, *SECRET, "data.qcow2"),
    "object, no id": ("info", "--object", "secret,id=1,data=x", "data.qcow2"),
    "create, too many words": ("create", "new", "1M", "more"),
    "convert, format": ("convert", "-f", "bogus", "data.raw", "new"),
    "convert, source": ("convert", "--image-opts", "driver=qcow2,file.filename=nowhere", "new"),
}

WRITES: dict[str, tuple[str, ...]] = {
    "resize": ("resize", "data.qcow2", "+1M"),
    "resize -q --shrink": ("resize", "-q", "--shrink", "-f", "qcow2", "data.qcow2", "512k"),
    "resize, image-opts": ("resize", "--image-opts", "--preallocation=metadata", QCOW2, "3M"),
    "resize, raw": ("resize", "-f", "raw", "--shrink", "--", "data.raw", "-64k"),
    "snapshot -c": ("snapshot", "-c", "new", "data.qcow2"),
    "snapshot -c, a dash": ("snapshot", "-c", "-x", "data.qcow2"),
    "resize, less and an option": ("resize", "data.qcow2", "-512k", "--shrink"),
    "bitmap -g 0": ("bitmap", "--add", "-g", "0", "data.qcow2", "b"),
    "snapshot -q -a": ("snapshot", "-q", "-a", "first", "snapshots.qcow2"),
    "snapshot -d": ("snapshot", "-d", "first", "--image-opts", "driver=qcow2,file.filename=snapshots.qcow2"),
    "bitmap": ("bitmap", "--add", "-g", "128k", "data.qcow2", "b"),
    "bitmap, several": ("bitmap", "--add", "--disable", "--enable", "--clear", "data.qcow2", "b"),
    "bitmap --add --disable": ("bitmap", "--image-opts", "--add", "--disable", QCOW2, "b"),
    "bitmap --merge": (
        "bitmap",
        "--add",
        "--merge",
        "old",
        "-b",
        "bitmaps.qcow2",
        "-F",
        "qcow2",
        "data.qcow2",
        "b",
    ),
    "amend": ("amend", "-o", "compat=0.10", "data.qcow2"),
    "amend -q -t": ("amend", "-q", "-t", "none", "-o", "lazy_refcounts=on", "data.qcow2"),
    "amend, image-opts": ("amend", "--image-opts", "-o", "refcount_bits=8", QCOW2),
    "amend, a key": (
        *("amend", *SECRET, "--object", "secret,id=new,data=other", "--image-opts"),
        *("-o", "encrypt.state=active,encrypt.new-secret=new,encrypt.iter-time=10", LUKS),
    ),
    "amend, a part": ("amend", "--image-opts", "-o", "compat=0.10", WRAPPED),
    "amend, an image within an image": ("amend", "--image-opts", "-o", "refcount_bits=8", NESTED),
    "amend, a size": ("amend", "--image-opts", "-o", "size=2M", WRAPPED),
    "amend, a size over another": ("amend", "--image-opts", "-o", "size=2M,lazy_refcounts=on", OVER_RAW),
    "amend, a size and a data file": ("amend", "--image-opts", "-o", "size=2M", MOVED),
    "rebase -u, a part": ("rebase", "-u", "--image-opts", "-b", "data.raw", "-F", "raw", WRAPPED),
    "rebase, a part": ("rebase", "--image-opts", "-b", "", WRAPPED),
    "rebase, an image within an image": ("rebase", "--image-opts", "-b", "", NESTED),
    "rebase, over another": ("rebase", "--image-opts", "-b", "", OVER_RAW),
    "rebase, over nothing": ("rebase", "-b", "", 'json:{"file.filename": "top.qcow2", "backing": null}'),
    "rebase, a data file": ("rebase", "--image-opts", "-b", "data.raw", "-F", "raw", "-t", "none", MOVED),
    "rebase -U": ("rebase", "-U", "-b", "data.raw", "-F", "raw", "-T", "none", "top.qcow2"),
    "rebase -u": ("rebase", "-u", "-b", "nowhere", "-F", "raw", "data.qcow2"),
    "rebase, safe": ("rebase", "-f", "qcow2", "-b", "data.raw", "-F", "raw", "-t", "none", "top.qcow2"),
    "rebase, flat": ("rebase", "--image-opts", "-b", "", "driver=qcow2,file.filename=top.qcow2"),
    "convert, image-opts": ("convert", "--image-opts", "-O", "qcow2", PART, "data.qcow2"),
    "convert, encrypted": ("convert", *SECRET, "--image-opts", "-O", "qcow2", LUKS, "data.qcow2"),
    "convert, source-image-opts": ("convert", "--source-image-opts", "-O", "qcow2", PART, "data.qcow2"),
    "convert, unsafe": ("convert", "-n", "-t", "unsafe", "-O", "qcow2", "data.raw", "top.qcow2"),
    "create, sizes": ("create", "-f", "qcow2", "-o", "cluster_size=+.5k", "data.qcow2", " 1M"),
    "create, in its words": (
        *("create", "-f", "qcow2", "-o", "lazy_refcounts=yes,compat=v3,preallocation=metadata"),
        *("-o", "cluster_size=4k,extended_l2=no,refcount_bits=1", "data.qcow2", "1M"),
    ),
    "create, version 2": (
        *("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "-o", "compat=v2", "data.qcow2"),
    ),
    "create, encrypted": (
        *("create", *SECRET, "-f", "qcow2"),
        *("-o", "encrypt.iter-time=10,encrypt.format=luks,encrypt.key-secret=s", "new.qcow2", "1M"),
    ),
    "create, LUKS": (
        *("create", *SECRET, "-f", "luks"),
        *("-o", "iter-time=10,key-secret=s,cipher-alg=aes-128,hash-alg=sha1", "new", "1M"),
    ),
    "convert, json:": ("convert", "-U", "-T", "none", JSON, "-O", "qcow2", "file:top.qcow2"),
    "commit": ("commit", "-q", "-t", "none", "-f", "qcow2", "top.qcow2"),
    "commit, image-opts": ("commit", "-d", "--image-opts", "driver=qcow2,file.filename=top.qcow2"),
    "commit, a part": ("commit", "--image-opts", WRAPPED),
    "commit, an image within an image": ("commit", "-t", "none", "--image-opts", NESTED),
    "commit, into another": ("commit", "--image-opts", OVER_RAW),
    "commit, into another by name": ("commit", "-b", "data.raw", "--image-opts", OVER_RAW),
    "commit, a data file": ("commit", "--image-opts", MOVED),
    "commit, below another": ("commit", "-b", "base.qcow2", "--image-opts", THIRD),
    "commit, into the one right below": ("commit", "-b", "top.qcow2", "--image-opts", THIRD),
    "resize, over another": ("resize", "--image-opts", OVER_RAW, "2M"),
    "snapshot -c, over another": ("snapshot", "-c", "new", "--image-opts", OVER_RAW),
    "bitmap --merge, json:": (
        *("bitmap", "--add", "--merge", "old", "-b", 'json:{"file.filename": "bitmaps.qcow2"}'),
        *("data.qcow2", "b"),
    ),
    "create": ("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "data.qcow2"),
    "check -r": ("check", "-q", "-r", "all", "--image-opts", QCOW2),
}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, all of a MiB and most with the same content."""
    folder = tmp_path_factory.mktemp("names")
    img, io = (runner(installed(tool), folder) for tool in ("qemu-img", "qemu-io"))
    content = bytes(65536) + bytes(range(256)) * 768 + bytes((1 << 20) - 65536 - 196608)
    (folder / "data.raw").write_bytes(content)
    (folder / "longer.raw").write_bytes(content + bytes(65536))
    (folder / "part.raw").write_bytes(content[65536:196608])
    (folder / "with,comma").write_bytes(content)
    (folder / "key").write_bytes(b"open sesame")
    for name in ("data.qcow2", "base.qcow2", "snapshots.qcow2", "bitmaps.qcow2"):
        img("convert", "-O", "qcow2", "data.raw", name)
    img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    io("-c", "write -P 7 512k 64k", "top.qcow2")
    img("snapshot", "-c", "first", "snapshots.qcow2")
    io("-c", "write -P 7 512k 64k", "snapshots.qcow2")
    img("snapshot", "-c", "1", "snapshots.qcow2")
    img("bitmap", "--add", "bitmaps.qcow2", "old")
    io("-c", "write -P 9 256k 64k", "bitmaps.qcow2")
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    img("convert", *SECRET, "-O", "qcow2", "-o", options, "data.raw", "vault.qcow2")
    (folder / "wrapped").write_bytes(bytes(512) + (folder / "data.qcow2").read_bytes())
    img("create", "-q", "-f", "qcow2", "empty.qcow2", "1M")
    (folder / "bundle").write_bytes(content + (folder / "empty.qcow2").read_bytes())
    img("create", "-q", "-f", "qcow2", "-b", "top.qcow2", "-F", "qcow2", "third.qcow2")
    io("-c", "write -P 8 768k 64k", "third.qcow2")
    over = ("-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2")
    img("create", "-q", *over, "-o", "data_file=gone.raw", "moved.qcow2")
    io("-c", "write -P 7 512k 64k", "moved.qcow2")
    (folder / "gone.raw").rename(folder / "moved.raw")
    top = (folder / "top.qcow2").read_bytes()
    (folder / "wrapped-top").write_bytes(bytes(512) + top)
    (folder / "disk").write_bytes(bytes(65536) + top + bytes(2 << 20))
    img("convert", "-O", "qcow2", "disk", "nested.qcow2")
    (folder / "disk").unlink()
    return folder


def both(pyimago: Run, qemu_img: Run, words: Sequence[str]) -> list[CompletedProcess[str]]:
    """What the two come to, with the same exit status."""
    ours, theirs = pyimago(*words, check=False), qemu_img(*words, check=False)
    assert ours.returncode == theirs.returncode, (ours, theirs)
    return [ours, theirs]


def commands(folder: Path) -> tuple[Run, Run]:
    """The two, at work there."""
    return runner(COMMAND, folder), runner("qemu-img", folder)


@pytest.mark.parametrize("words", READS.values(), ids=READS.keys())
def test_both_say_the_same(words: tuple[str, ...], images: Path, qemu_img: Run) -> None:
    ours, theirs = both(*commands(images), words)
    assert ours.stderr == ""
    if theirs.stdout[:1] in {"{", "["}:
        assert json.loads(ours.stdout) == json.loads(theirs.stdout)
    else:
        assert ours.stdout == theirs.stdout


@pytest.mark.parametrize("words", FAILURES.values(), ids=FAILURES.keys())
def test_both_refuse(words: tuple[str, ...], images: Path, tmp_path: Path, qemu_img: Run) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    ours, theirs = both(*commands(folder), words)
    assert theirs.returncode > 0
    assert ours.stderr.startswith("pyimago: ")
    assert len(ours.stderr.splitlines()) == 1
    assert ours.stdout == ""
    for path in images.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes(), f"{path.name} was changed"


def state(run: Run, name: str) -> dict[str, Any]:
    """What qemu-img says of an image, but for its place and what is different each time."""
    document: dict[str, Any] = json.loads(run("info", "--output=json", name).stdout)
    for key in ("children", "actual-size"):
        document.pop(key, None)
    for snapshot in document.get("snapshots", ()):
        snapshot["date-sec"] = snapshot["date-nsec"] = snapshot["icount"] = 0
    for slot in document.get("format-specific", {}).get("data", {}).get("encrypt", {}).get("slots", ()):
        slot.pop("iters", None)
    return document


@pytest.mark.parametrize("words", WRITES.values(), ids=WRITES.keys())
def test_both_make_the_same(words: tuple[str, ...], images: Path, tmp_path: Path, qemu_img: Run) -> None:
    ours, theirs = (shutil.copytree(images, tmp_path / name) for name in ("ours", "theirs"))
    done = [commands(ours)[0](*words), commands(theirs)[1](*words)]
    assert done[0].stdout == done[1].stdout
    for name in ("data.qcow2", "top.qcow2", "third.qcow2", "snapshots.qcow2", "vault.qcow2"):
        runs = [commands(folder)[1] for folder in (ours, theirs)]
        assert state(runs[0], name) == state(runs[1], name)
        if name != "vault.qcow2" and words[:2] != ("rebase", "-u"):
            qemu_img("compare", "-q", ours / name, theirs / name)
    assert (ours / "data.raw").read_bytes() == (theirs / "data.raw").read_bytes()
    for word in (MOVED, WRAPPED, NESTED):
        content: list[bytes] = []
        for folder in (ours, theirs):
            run = commands(folder)[1]
            run("convert", "-O", "raw", "--image-opts", word, "content")
            content.append((folder / "content").read_bytes())
        assert content[0] == content[1]
        run = commands(ours)[1]
        assert run("check", "-q", "--image-opts", word, check=False).returncode in {0, 3}


@pytest.mark.parametrize(
    "words", [(WRAPPED,), (NESTED,), (MOVED,), (OVER_RAW,), (PART,), ("-w", NESTED), ("-w", PART)]
)
def test_both_measure_any_image(words: Sequence[str], images: Path, tmp_path: Path, qemu_img: Run) -> None:
    folders = [shutil.copytree(images, tmp_path / name) for name in ("ours", "theirs")]
    runs = commands(folders[0])[0], commands(folders[1])[1]
    options = ("--pattern=5", "-c", "3", "-s", "8k", "-t", "unsafe", "--image-opts")
    said = [run("bench", *options, *words).stdout for run in runs]
    assert said[0].splitlines()[0] == said[1].splitlines()[0]
    content = []
    for folder in folders:
        run = commands(folder)[1]
        run("convert", "-O", "raw", "--image-opts", words[-1], "content")
        content.append((folder / "content").read_bytes())
    assert content[0] == content[1]


READERS = [
    ("info", "data.qcow2"),
    ("map", "data.qcow2"),
    ("check", "data.qcow2"),
    ("compare", "data.qcow2", "data.raw"),
    ("measure", "data.qcow2"),
    ("snapshot", "data.qcow2"),
    ("convert", "data.qcow2", "new"),
]
WRITERS = [
    ("resize", "data.qcow2", "2M"),
    ("snapshot", "-c", "x", "data.qcow2"),
    ("check", "-r", "all", "data.qcow2"),
]


@pytest.mark.parametrize("words", [*READERS, *WRITERS], ids=" ".join)
def test_an_image_that_qemu_writes_is_left_alone(
    words: tuple[str, ...], images: Path, tmp_path: Path, qemu_img: Run
) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    command = ["qemu-io", "-f", "qcow2", "data.qcow2"]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.read(8) == b"qemu-io>"
        ours, theirs = both(*commands(folder), words)
        assert theirs.returncode == (2 if words[0] == "compare" else 1)
        assert f", by the process {writer.pid} (qemu-io); end" in ours.stderr
        if words in READERS:
            ours, theirs = both(*commands(folder), [words[0], "-U", *words[1:]])
            assert theirs.returncode == 0
        writer.communicate(b"quit\n")


def test_who_gives_no_secret_is_told_how(images: Path) -> None:
    run = commands(images)[0]
    told = run("map", "vault.qcow2", check=False).stderr
    assert "give the secret that opens it (--object secret,id=ID,file=KEY; --image-opts" in told


def test_an_image_that_is_written_here_is_left_alone(images: Path, tmp_path: Path, qemu_img: Run) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    ours, theirs = commands(folder)
    with pyimago.open(folder / "top.qcow2", format="qcow2", write=True):
        for name in ("top.qcow2", "base.qcow2"):
            read = "info", "--output=json", name
            assert (ours(*read, check=False).returncode == 0) == (name == "base.qcow2")
            assert (theirs(*read, check=False).returncode == 0) == (name == "base.qcow2")
            assert theirs("resize", name, "2M", check=False).returncode == 1
            refused = ours("resize", name, "2M", check=False)
            assert refused.returncode == 1
            assert f"by the process {os.getpid()} (" in refused.stderr
            for run in (ours, theirs):
                run(*read, "-U")


def test_what_an_image_describes_is_recorded_and_opened_where_that_is_allowed(
    tmp_path: Path, pyimago: Run, qemu_img: Run
) -> None:
    content = bytes(range(256)) * 512
    (tmp_path / "base.raw").write_bytes(content)
    below = "json:{'driver': 'raw', 'offset': 65536, 'file': {'driver': 'file', 'filename': 'base.raw'}}"
    make = ("create", "-f", "qcow2", "-b", below, "-F", "raw", "top.qcow2")
    theirs = qemu_img(*make).stdout, json.loads(qemu_img("info", "--output=json", "top.qcow2").stdout)
    ours = pyimago(*make).stdout, json.loads(qemu_img("info", "--output=json", "top.qcow2").stdout)
    assert ours[0] == theirs[0]
    facts = ("virtual-size", "backing-filename", "full-backing-filename", "backing-filename-format")
    assert [ours[1][fact] for fact in facts] == [theirs[1][fact] for fact in facts]
    refused = pyimago("convert", "top.qcow2", "new", check=False)
    assert refused.returncode == 1
    assert "--allow-implicit" in refused.stderr
    assert not (tmp_path / "new").exists()
    pyimago("convert", "--allow-implicit", "top.qcow2", "new")
    assert (tmp_path / "new").read_bytes() == content[65536:]
    pyimago("map", "--allow-implicit", "--picture", "map.png", "top.qcow2")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    for backing in ("json:{'driver': 'qcow2'", "json:{'driver': 'raw', 'file.filename': 'nowhere'}"):
        failed = [
            run("create", "-f", "qcow2", "-b", backing, "-F", "raw", "other.qcow2", check=False)
            for run in (pyimago, qemu_img)
        ]
        assert [run.returncode for run in failed] == [1, 1]
    assert not (tmp_path / "other.qcow2").exists()
