"""List the snapshots in IMAGE, take one, go back to one, or delete one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyimago
from pyimago.cli import _info
from pyimago.cli._arguments import Change, add_format, add_output
from pyimago.cli._images import Images, add_naming
from pyimago.cli._text import UsageError

if TYPE_CHECKING:
    import argparse

    from pyimago.cli._arguments import Parser


def add_arguments(parser: Parser) -> None:
    """What `snapshot` takes."""
    parser.add_argument("image", metavar="IMAGE", help="the image's file")
    add_format(parser)
    add_naming(parser, share=True)
    parser.set_defaults(changes=[])
    parser.add_argument("-l", "--list", action=Change, nargs=0, help="list them (the default)")
    for names, text in (
        (("-c", "--create"), "take one"),
        (("-a", "--apply"), "make the disk what it was, by id or name"),
        (("-d", "--delete"), "delete one, by name"),
    ):
        parser.add_argument(*names, metavar="NAME", action=Change, help=text)
    parser.add_argument(
        "--rename", metavar=("NAME", "NEW"), nargs=2, action=Change, help="give one another name"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line says."""
    if len(arguments.changes) > 1:
        raise UsageError("Cannot mix '-l', '-a', '-c', '-d'")
    change, value = (arguments.changes or [("list", "")])[0]
    if change == "list":
        _list(arguments)
        return
    with Images(arguments).opened(arguments.image, arguments.format, write=True, below="given") as image:
        match change:
            case "create":
                image.snapshots.create(value)
            case "apply":
                image.snapshots.apply(value)
            case "delete":
                image.snapshots.delete(_id_of(image, value))
            case _:
                image.snapshots.rename(*value)


def _id_of(image: pyimago.SyncFormatAccess, name: str) -> str:
    """The first snapshot of that name; as with qemu-img what is deleted is named, not numbered."""
    for snapshot in image.snapshots.list():
        if snapshot.name == name:
            return snapshot.id
    raise UsageError(f"Could not delete snapshot {name!r}: snapshot not found")


def _list(arguments: argparse.Namespace) -> None:
    with Images(arguments).parts(arguments.image, arguments.format) as image:
        document = pyimago.info(image.storage, format=image.format).to_dict()
    snapshots = document.get("snapshots", [])
    if arguments.output == "json":
        print(json.dumps(snapshots, indent=4))
    elif snapshots:
        print("\n".join(_info.snapshot_lines(snapshots)))
