"""Print what IMAGE says of itself. No other file is opened without --backing-chain."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyimago
from pyimago.cli._arguments import add_format, add_implicit, add_output
from pyimago.cli._images import Images, add_naming
from pyimago.cli._text import escape, size

if TYPE_CHECKING:
    import argparse

    from pyimago.cli._arguments import Parser

INDENT = "    "


def add_arguments(parser: Parser) -> None:
    """What `info` takes."""
    parser.add_argument("image", metavar="IMAGE", help="the image's file")
    add_format(parser)
    add_naming(parser, share=True)
    add_output(parser)
    parser.add_argument(
        "-b", "--backing-chain", action="store_true", help="the backing files too, topmost first"
    )
    add_implicit(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print what `pyimago info` was asked for."""
    images = Images(arguments)
    with images.header(arguments.image, arguments.format) as (storage, kind):
        if arguments.backing_chain:
            chain = pyimago.info_chain(storage, format=kind, implicit=arguments.implicit, lock=images.lock)
        else:
            chain = [pyimago.info(storage, format=kind)]
    documents = [image.to_dict() for image in chain]
    if not isinstance(storage, pyimago.File):
        # Its file's name alone would say too much.
        documents[0]["filename"] = images.in_full(arguments.image, arguments.format)
    if arguments.output == "json":
        print(json.dumps(documents if arguments.backing_chain else documents[0], indent=4))
    else:
        print("\n\n".join("\n".join(human(document)) for document in documents))


def human(document: Mapping[str, Any]) -> Iterator[str]:
    """The lines that tell a person what the JSON `document` of one image says."""
    yield f"image: {escape(document['filename'])}"
    yield f"file format: {document['format']}"
    yield f"virtual size: {_exact(document['virtual-size'])}"
    yield from _common(document)
    for child in document.get("children", ()):
        yield f"Child node '/{escape(child['name'])}':"
        yield from (INDENT + line for line in _child(child["info"]))


def _child(document: Mapping[str, Any]) -> Iterator[str]:
    yield f"filename: {escape(document['filename'])}"
    yield f"protocol type: {document['format']}"
    yield f"file length: {_exact(document['virtual-size'])}"
    yield from _common(document)


def _common(document: Mapping[str, Any]) -> Iterator[str]:
    if "actual-size" in document:
        yield f"disk size: {size(document['actual-size'])}"
    if document.get("encrypted"):
        yield "encrypted: yes"
    if "cluster-size" in document:
        yield f"cluster_size: {document['cluster-size']}"
    if document.get("dirty-flag"):
        yield "cleanly shut down: no"
    if "backing-filename" in document:
        yield f"backing file: {_backing(document)}"
    if "backing-filename-format" in document:
        yield f"backing file format: {escape(document['backing-filename-format'])}"
    if document.get("snapshots"):
        yield from snapshot_lines(document["snapshots"])
    if data := document.get("format-specific", {}).get("data"):
        yield "Format specific information:"
        yield from (INDENT + line for line in _tree(data))


def _backing(document: Mapping[str, Any]) -> str:
    name, path = document["backing-filename"], document.get("full-backing-filename")
    if path is None:
        return f"{escape(name)} (cannot determine actual path)"
    return escape(name) if path == name else f"{escape(name)} (actual path: {escape(path)})"


def snapshot_lines(snapshots: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The table that tells a person of them."""
    yield "Snapshot list:"
    yield _snapshot_row("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT")
    for snapshot in snapshots:
        date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot["date-sec"]))
        minutes, seconds = divmod(snapshot["vm-clock-sec"], 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours:04}:{minutes:02}:{seconds:02}.{snapshot['vm-clock-nsec'] // 1_000_000:03}"
        yield _snapshot_row(
            escape(snapshot["id"]),
            escape(snapshot["name"]),
            size(snapshot["vm-state-size"]),
            date,
            clock,
            str(snapshot.get("icount", "--")),
        )


def _snapshot_row(identifier: str, tag: str, vm_size: str, date: str, clock: str, icount: str) -> str:
    return f"{identifier:<7} {tag:<16} {vm_size:>8} {date:>19} {clock:>15} {icount:>10}"


def _tree(value: Mapping[str, Any] | Sequence[Any]) -> Iterator[str]:
    """Nested data, a line each: members of an object by name, of a list by index."""
    if isinstance(value, Mapping):
        members = [(escape(key.replace("-", " ")), member) for key, member in value.items()]
    else:
        members = [(f"[{index}]", member) for index, member in enumerate(value)]
    for label, member in members:
        if _nested(member):
            yield f"{label}:"
            yield from (INDENT + line for line in _tree(member))
        else:
            yield f"{label}: {_scalar(member)}"


def _nested(value: object) -> bool:
    return isinstance(value, (Mapping, list, tuple))


def _scalar(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else escape(value)


def _exact(count: int) -> str:
    return f"{size(count)} ({count} bytes)"
