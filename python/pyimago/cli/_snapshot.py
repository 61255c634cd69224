"""List the snapshots in IMAGE, take one, go back to one, or delete one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyimago
from pyimago.cli import _info
from pyimago.cli._arguments import add_format, add_output
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
    what = parser.add_mutually_exclusive_group()
    what.add_argument("-l", "--list", action="store_true", help="list them (the default)")
    what.add_argument("-c", "--create", metavar="NAME", help="take one")
    what.add_argument("-a", "--apply", metavar="NAME", help="make the disk what it was, by id or name")
    what.add_argument("-d", "--delete", metavar="NAME", help="delete one, by name")
    what.add_argument("--rename", metavar=("NAME", "NEW"), nargs=2, help="give one another name")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line says."""
    changes = (arguments.create, arguments.apply, arguments.delete, arguments.rename)
    if not any(change is not None for change in changes):
        _list(arguments)
        return
    with Images(arguments).opened(arguments.image, arguments.format, write=True, below="given") as image:
        if arguments.create is not None:
            image.snapshots.create(arguments.create)
        elif arguments.apply is not None:
            image.snapshots.apply(arguments.apply)
        elif arguments.delete is not None:
            image.snapshots.delete(_id_of(image, arguments.delete))
        else:
            image.snapshots.rename(*arguments.rename)


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
