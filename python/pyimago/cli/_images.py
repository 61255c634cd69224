"""From the words of the command line to images.

A word names a file, or says in full what is to be opened: `--image-opts driver=qcow2,file.filename=NAME` and
`json:{"driver": "qcow2", "file": {"driver": "file", "filename": "NAME"}}` are the same tree.
"""

from __future__ import annotations

import json
import os
import re
import stat
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import pyimago
from pyimago.cli import _layout
from pyimago.cli._arguments import ID, add_objects, read_secrets
from pyimago.cli._text import UsageError, parse_size

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator, Mapping
    from typing import Literal, TypeAlias

    from pyimago._types import Format, Implicit, Lock
    from pyimago.cli._arguments import Parser

    Below: TypeAlias = Literal["all", "given", "none"]
    """What is opened below an image: all; what is given; nothing, and to give it is wrong."""

FORMATS = ("qcow2", "raw", "luks")
FILES = ("file", "host_device")
"""Drivers of what an image is in."""
NAMES_OF_FORMATS = {
    *("bochs", "cloop", "dmg", "file", "host_device", "luks", "parallels", "qcow", "qcow2", "qed", "raw"),
    *("vdi", "vhdx", "vmdk", "vpc", "vvfat"),
}
"""What an image may say that its backing file is, whether that can be opened here or not."""
PROTOCOLS = {
    *(
        "json",
        "blkdebug",
        "blklogwrites",
        "blkverify",
        "fat",
        "file",
        "ftp",
        "ftps",
        "gluster",
        "host_cdrom",
        "http",
    ),
    *("https", "iscsi", "iser", "nbd", "nbd+tcp", "nbd+unix", "nfs", "null-aio", "null-co", "nvme", "quorum"),
    *("rbd", "replication", "sheepdog", "ssh", "vvfat", "vxhs"),
}
"""What QEMU knows before a colon; any other word with one is the name of a file."""
CACHES = {
    "none": True,
    "off": True,
    "directsync": True,
    "writeback": False,
    "writethrough": False,
    "unsafe": False,
}
"""The modes, and whether they bypass the page cache."""


def add_naming(parser: Parser, *, share: bool = False) -> None:
    """`--image-opts` and `--object`; `-U` too with `share`."""
    parser.add_argument(
        "--image-opts",
        action="store_true",
        help="images are given as driver=qcow2,file.filename=NAME,... and not by name",
    )
    if share:
        parser.add_argument(
            "-U", "--force-share", action="store_true", help="take no locks: somebody may be using the image"
        )
    add_objects(parser)


def add_cache(parser: Parser, *names: str) -> None:
    """A cache mode, under `names`."""
    parser.add_argument(
        *names,
        metavar="MODE",
        default="writeback",
        help="past the page cache (none, directsync) or through it (writeback, writethrough, unsafe)",
    )


QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
QUOTE = re.compile(r"""\\.|\"""", re.DOTALL)
DEPTH_MAX = 64
"""Trees within trees: each is opened by a call within a call."""
SIZES = ("l2-cache-size", "refcount-cache-size")
SWITCHES = (
    *("discard-no-unref", "lazy-refcounts", "pass-discard-other", "pass-discard-request"),
    "pass-discard-snapshot",
)
OVERLAP_CHECKS = ("none", "constant", "cached", "all")
OVERLAPS = (
    *("main-header", "active-l1", "active-l2", "refcount-table", "refcount-block", "snapshot-table"),
    *("inactive-l1", "inactive-l2", "bitmap-directory"),
)
"""The kinds of metadata that QEMU does not write over by mistake."""
CLUSTER_MAX = 2 << 20


class Tree:
    """What an image, or the file of one, is to be opened as. An option that was looked at is gone from it."""

    def __init__(self, options: dict[str, Any], where: str = "") -> None:
        self.options = options
        self.where = where
        self.driver = self.text("driver")

    def text(self, name: str) -> str | None:
        """An option that is a string."""
        value = self.options.pop(name, None)
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{self.where}{name} is a string, not {value!r}")
        return value

    def switch(self, name: str) -> bool | None:
        """An option that is on or off."""
        value = self.options.pop(name, None)
        if value is None or isinstance(value, bool):
            return value
        if value not in _layout.SWITCH:
            raise UsageError(f"{self.where}{name} is on or off, not {value!r}")
        return _layout.SWITCH[value]

    def size(self, name: str) -> int | None:
        """An option that is a number of bytes."""
        value = self.options.pop(name, None)
        try:
            return None if value is None else parse_size(str(value))
        except ValueError as error:
            raise UsageError(f"{self.where}{name}: {error}") from None

    def child(self, name: str) -> Tree | None:
        """An option that is a tree of its own."""
        value = self.options.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise UsageError(f"{self.where}{name} is to say what to open ({name}.driver=...), not {value!r}")
        return Tree(cast("dict[str, Any]", value), f"{self.where}{name}.")

    def below(self) -> Tree | Literal["implicit"] | None:
        """What is below the image: what the tree says, or what the image does."""
        if no_backing(self):
            return None
        if (backing := self.child("backing")) is None:
            return "implicit"
        if not self.maybe("qcow2"):
            raise UsageError(
                f"{self.where}backing: the driver {self.driver!r} does not support backing files"
            )
        return backing

    def maybe(self, driver: str) -> bool:
        """Whether the image may be of that driver."""
        return self.driver in {driver, None}

    def skip(self, *names: str) -> None:
        """Options that are not looked at here."""
        for name in names:
            self.options.pop(name, None)

    def choice(self, name: str, *choices: str) -> str | None:
        """An option that is one of some words."""
        value = self.text(name)
        if value is not None and value not in choices:
            raise UsageError(f"{self.where}{name} is one of {', '.join(choices)}, not {value!r}")
        return value

    def number(self, name: str, most: int) -> int | None:
        """An option that is a whole number."""
        value = self.options.pop(name, None)
        if value is None:
            return None
        text = str(value)
        if not (text.isascii() and text.isdecimal()) or int(text) > most:
            raise UsageError(f"{self.where}{name} is a number up to {most}, not {value!r}")
        return int(text)

    def end(self) -> None:
        """Refuse what nobody has looked at."""
        for name in self.options:
            what = f"the driver {self.driver!r}" if self.driver else "an image"
            raise UsageError(f"no option {self.where + name!r}: {what} has none of that name")


class Images:
    """Opens the images that a command line names.

    `image_opts` and `share` are the command line's unless said.
    """

    def __init__(
        self, arguments: argparse.Namespace, *, image_opts: bool | None = None, share: bool | None = None
    ) -> None:
        self.image_opts: bool = getattr(arguments, "image_opts", False) if image_opts is None else image_opts
        self.share: bool = getattr(arguments, "force_share", False) if share is None else share
        self.implicit: Implicit = getattr(arguments, "implicit", "beside")
        self.secrets = read_secrets(getattr(arguments, "object", ()))

    @property
    def lock(self) -> Lock:
        """What `-U` says."""
        return "off" if self.share else "auto"

    @contextmanager
    def opened(
        self,
        word: str,
        format: str | None = None,
        *,
        write: bool = False,
        below: Below = "all",
        cache: str = "writeback",
        what: str = "source cache",
        snapshot: SnapshotName | None = None,
        write_backing: bool | str = False,
        durable: bool = True,
    ) -> Generator[pyimago.SyncFormatAccess]:
        """The image that `word` names.

        `format` is what `-f` said, `cache` what `-t` or `-T` did, which a message calls `what`.
        `write_backing` is that of `pyimago.open`, `durable` that of `StorageOpenOptions`.
        """
        with ExitStack() as stack:
            opening = _Opening(
                *(self, stack), write=write, direct=bypasses_cache(cache, what), durable=durable
            )
            yield opening.image(
                self.tree(word, format),
                write=write,
                below=below,
                snapshot=snapshot,
                write_backing=write_backing,
            )

    @contextmanager
    def layers(
        self, word: str, format: str | None
    ) -> Generator[list[tuple[str, AbstractContextManager[pyimago.SyncFormatAccess]]]]:
        """Each image of a chain by itself, topmost first: its name, and what opens it."""
        with ExitStack() as stack:
            opening = _Opening(self, stack, write=False, direct=False)
            found: list[tuple[str, AbstractContextManager[pyimago.SyncFormatAccess]]] = []
            tree: Tree | Literal["implicit"] | None = self.tree(word, format)
            while isinstance(tree, Tree):
                below = tree.below()
                parts = opening.parts(tree, write=False, below="given")
                if below == "implicit":
                    chain = pyimago.info_chain(
                        parts.storage, format=parts.format, implicit=self.implicit, lock=self.lock
                    )
                else:
                    chain = [pyimago.info(parts.storage, format=parts.format)]
                layer = pyimago.open(
                    parts.storage,
                    format=parts.format,
                    backing=None,
                    data_file=parts.data_file,
                    secret=parts.secret,
                    implicit=self.implicit,
                    lock=self.lock,
                )
                found.append((chain[0].filename, nullcontext(stack.enter_context(layer))))
                found += [(link.filename, self._named(link, parts.secret)) for link in chain[1:]]
                tree = below
            yield found

    @contextmanager
    def _named(self, link: pyimago.ImageInfo, secret: bytes | None) -> Generator[pyimago.SyncFormatAccess]:
        """An image that another one names, by itself; where it is in no file its name is a description."""
        with ExitStack() as stack:
            if link.filename.startswith("json:"):
                tree = Tree(_nested(_parsed(link.filename) | {"driver": link.format, "backing": None}))
                opening = _Opening(self, stack, write=False, direct=False)
                yield opening.image(tree, write=False)
                return
            yield stack.enter_context(
                pyimago.open(
                    link.filename,
                    format=format_of(link.format),
                    backing=None,
                    implicit=self.implicit,
                    secret=secret,
                    lock=self.lock,
                )
            )

    @contextmanager
    def parts(
        self,
        word: str,
        format: str | None = None,
        *,
        write: bool = False,
        below: Below = "given",
        cache: str = "writeback",
        what: str = "source cache",
    ) -> Generator[Parts]:
        """The parts of the image that `word` names, for what opens it by itself.

        What is below it is opened only if it is given.
        """
        with ExitStack() as stack:
            opening = _Opening(self, stack, write=write, direct=bypasses_cache(cache, what))
            yield opening.parts(self.tree(word, format), write=write, below=below)

    @contextmanager
    def header(
        self, word: str, format: str | None = None
    ) -> Generator[tuple[pyimago.Storage, Format | None]]:
        """Where the image is that `word` names, and its format, for what opens nothing else."""
        with ExitStack() as stack:
            opening = _Opening(self, stack, write=False, direct=False)
            tree = self.tree(word, format)
            opening.general(tree, write=False)
            opening.nothing_below(tree)
            if tree.maybe("qcow2"):
                opening.tuning(tree)
                tree.skip("encrypt", "data-file")
            tree.skip(*(["key-secret"] if tree.maybe("luks") else []))
            kind, storage = opening.container(tree, write=False)
            tree.end()
            yield storage, kind

    def in_full(self, word: str, format: str | None) -> str:
        """The name of an image that no file's name stands for."""
        return f"json:{json.dumps(self._options(word, format))}"

    def tree(self, word: str, format: str | None) -> Tree:
        """What is to be opened for a word."""
        return Tree(self._options(word, format))

    def _options(self, word: str, format: str | None) -> dict[str, Any]:
        if self.image_opts:
            if format is not None:
                raise UsageError("--image-opts and --format are mutually exclusive")
            options: dict[str, Any] = _flat(word)
        elif word.startswith("json:"):
            options = _parsed(word)
        elif format in FILES:
            options = {"filename": file_name(word)}
        else:
            options = {"file": {"filename": file_name(word)}}
        if format is not None:
            options["driver"] = format
        return _nested(options)


class Parts:
    """What an image is made of, open."""

    storage: pyimago.Storage
    format: Format | None
    secret: bytes | None
    backing: pyimago.SyncFormatAccess | Literal["implicit"] | None
    """As `pyimago.open` takes it."""
    data_file: pyimago.Storage | None = None
    caches: Mapping[str, Any] = {}
    """Their sizes, as `pyimago.open` takes them."""


class _Opening:
    """The opening of what one word names. What is opened is closed by `stack`."""

    def __init__(
        self, images: Images, stack: ExitStack, *, write: bool, direct: bool, durable: bool = True
    ) -> None:
        self.images = images
        self.stack = stack
        self.lock: Lock = images.lock
        self.direct = direct
        self.durable = durable
        if images.share:
            self.share(write=write)

    def share(self, *, write: bool) -> None:
        """Take no locks."""
        if write:
            raise UsageError("force-share=on can only be used with read-only images")
        self.lock = "off"

    def general(self, tree: Tree, *, write: bool) -> None:
        """The options that every image and every file has."""
        share = tree.switch("force-share")
        if share:
            self.share(write=write)
        elif share is False and self.images.share:
            raise UsageError("--force-share/-U conflicts with image options")
        if tree.switch("read-only") and write:
            raise UsageError(f"{tree.where}read-only is on: the image cannot be written")
        discard = tree.choice("discard", "ignore", "off", "unmap", "on")
        zeroes = tree.choice("detect-zeroes", "off", "on", "unmap")
        if zeroes == "unmap" and discard not in {"unmap", "on"}:
            raise UsageError(f"{tree.where}detect-zeroes=unmap goes with discard=unmap only")
        if zeroes not in {None, "off"} and write:
            raise UsageError(f"{tree.where}detect-zeroes can be off only for an image that is written")
        if (cache := tree.child("cache")) is not None:
            direct = cache.switch("direct")
            self.direct = self.direct if direct is None else direct
            cache.switch("no-flush")
            cache.end()
        if (node := tree.text("node-name")) is not None and not (ID.fullmatch(node) and len(node) < 32):
            raise UsageError(f"{tree.where}node-name: {node!r} is no name of a node")
        tree.switch("auto-read-only")

    def image(
        self,
        tree: Tree,
        *,
        write: bool,
        below: Below = "all",
        snapshot: SnapshotName | None = None,
        write_backing: bool | str = False,
    ) -> pyimago.SyncFormatAccess:
        """The image that a tree describes."""
        parts = self.parts(tree, write=write, below=below, write_backing=write_backing)
        if below != "all" and parts.backing == "implicit":
            parts.backing = None
        return self.stack.enter_context(
            pyimago.open(
                parts.storage,
                write=write,
                format=parts.format,
                snapshot=None if snapshot is None else snapshot.find(parts),
                backing=parts.backing,
                # What is given has been opened as it is to be.
                write_backing=write_backing if parts.backing == "implicit" else False,
                data_file=parts.data_file,
                secret=parts.secret,
                implicit=self.images.implicit,
                lock=self.lock,
                direct=self.direct,
                **parts.caches,
            )
        )

    def parts(self, tree: Tree, *, write: bool, below: Below, write_backing: bool | str = False) -> Parts:
        """The parts of that image."""
        self.general(tree, write=write)
        parts = Parts()
        parts.secret = self.secret(tree)
        parts.backing = (
            self.nothing_below(tree) if below == "none" else self.backing(tree, write_backing=write_backing)
        )
        if tree.maybe("qcow2"):
            parts.caches = self.tuning(tree)
            if (data := tree.child("data-file")) is not None:
                parts.data_file = self.storage(data, write=write)
        parts.format, parts.storage = self.container(tree, write=write)
        tree.end()
        return parts

    def tuning(self, tree: Tree) -> Mapping[str, int | None]:
        """How a qcow2 image is worked with: the sizes of its caches, as `pyimago.open` takes them.

        The others change how QEMU goes about it and nothing that is seen here; what they say is checked
        all the same.
        """
        sizes = {name: tree.size(name) for name in SIZES}
        if (both := tree.size("cache-size")) is not None:
            if None not in sizes.values():
                raise UsageError(f"{tree.where}cache-size and {' and '.join(SIZES)} exclude each other")
            for name, size in sizes.items():
                if size is not None and size > both:
                    raise UsageError(f"{tree.where}{name} may not exceed cache-size")
        entry = tree.size("l2-cache-entry-size")
        if entry is not None and (entry.bit_count() != 1 or not 512 <= entry <= CLUSTER_MAX):
            raise UsageError(
                f"{tree.where}l2-cache-entry-size is a power of two from 512 to the cluster size"
            )
        tree.number("cache-clean-interval", 2**32 - 1)
        for name in SWITCHES:
            tree.switch(name)
        if isinstance(tree.options.get("overlap-check"), dict):
            overlap = cast("Tree", tree.child("overlap-check"))
            overlap.choice("template", *OVERLAP_CHECKS)
            for name in OVERLAPS:
                overlap.switch(name)
            overlap.end()
        else:
            tree.choice("overlap-check", *OVERLAP_CHECKS)
        return {name.replace("-", "_"): size for name, size in sizes.items()}

    def nothing_below(self, tree: Tree) -> Literal["implicit"] | None:
        """Refuse an image that is given as backing: none is looked at."""
        if no_backing(tree):
            return None
        if "backing" in tree.options:
            raise UsageError(f"no option {tree.where + 'backing'!r} here: what is below is not looked at")
        return "implicit"

    def backing(
        self, tree: Tree, *, write_backing: bool | str
    ) -> pyimago.SyncFormatAccess | Literal["implicit"] | None:
        """What a tree says is below its image."""
        backing = tree.below()
        if not isinstance(backing, Tree):
            return backing
        if write_backing is True or (write_backing and self.is_called(backing, write_backing)):
            return self.image(backing, write=True)
        return self.image(backing, write=False, write_backing=write_backing)

    def is_called(self, tree: Tree, name: str) -> bool:
        """Whether what a tree describes is the file of that name."""
        file = tree.options
        while isinstance(within := file.get("file"), dict):
            file = cast("dict[str, Any]", within)
        found = file.get("filename")
        return isinstance(found, str) and os.path.realpath(found) == os.path.realpath(name)

    def container(self, tree: Tree, *, write: bool) -> tuple[Format | None, pyimago.Storage]:
        """The format that a tree says an image has, and the storage that the image is in."""
        if tree.driver in FILES:
            return "raw", self.file(tree, write=write)
        kind = format_of(tree.driver)
        file = tree.child("file")
        if file is None:
            raise UsageError(f"{tree.where}file is missing: give {tree.where}file.filename=NAME")
        storage = self.storage(file, write=write)
        if kind == "raw":
            offset, size = tree.size("offset"), tree.size("size")
            if offset is not None or size is not None:
                storage = pyimago.Slice(storage, offset=offset or 0, size=size)
        return kind, storage

    def storage(self, tree: Tree, *, write: bool) -> pyimago.Storage:
        """What an image is in: a file, a part of one, or the disk that another image holds."""
        if tree.driver in {None, *FILES}:
            return self.file(tree, write=write)
        if tree.driver == "raw":
            self.general(tree, write=write)
            _, storage = self.container(tree, write=write)
            tree.end()
            return storage
        return pyimago.Disk(self.image(tree, write=write))

    def file(self, tree: Tree, *, write: bool) -> pyimago.File:
        """The file that a tree describes."""
        driver = tree.driver
        filename, lock = self.filename(tree, write=write)
        if driver is not None:
            _check_driver(driver, filename)
        options = pyimago.StorageOpenOptions(
            filename=filename, write=write, direct=self.direct, lock=lock, durable=self.durable
        )
        return pyimago.File.open_sync(options)

    def filename(self, tree: Tree, *, write: bool) -> tuple[str, Lock]:
        """Its name, and whether it is locked."""
        self.general(tree, write=write)
        filename = tree.text("filename")
        if filename is None:
            raise UsageError(f"{tree.where}filename is missing: it is the name of a file")
        locking = tree.choice("locking", "on", "off", "auto")
        if tree.choice("aio", "threads", "native", "io_uring") == "native" and not self.direct:
            raise UsageError(f"{tree.where}aio=native goes with cache.direct=on only")
        tree.number("aio-max-batch", 2**63 - 1)
        tree.switch("drop-cache")
        tree.switch("x-check-cache-dropped")
        tree.end()
        return filename, "off" if locking == "off" else self.lock

    def secret(self, tree: Tree) -> bytes | None:
        """What opens an encrypted image."""
        name = tree.text("key-secret") if tree.maybe("luks") else None
        if tree.maybe("qcow2") and (encrypt := tree.child("encrypt")) is not None:
            if (method := encrypt.text("format")) not in {None, "luks", "aes"}:
                raise UsageError(f"{encrypt.where}format is luks or aes, not {method!r}")
            name = encrypt.text("key-secret") or name
            encrypt.end()
        return None if name is None else _layout.secret(name, self.images.secrets)


def add_snapshot(parser: Parser, *names: str) -> None:
    """`-l`, under these names."""
    parser.add_argument(
        *(names or ("-l", "--snapshot")),
        metavar="SNAPSHOT",
        help="the disk as this snapshot has it: an id or a name, or snapshot.id=ID,snapshot.name=NAME",
    )


class SnapshotName:
    """What `-l` says: an id or a name, or which of the two, or both."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.wanted: dict[str, str] = {}
        if text.startswith("snapshot."):
            self.wanted = dict(_layout.member(part) for part in _layout.split([text]))
            if not self.wanted.keys() <= {"snapshot.id", "snapshot.name"}:
                raise UsageError(f"Failed in parsing snapshot param '{text}'")

    def find(self, parts: Parts) -> str:
        """The id or name by which `pyimago.open` finds it."""
        if not self.wanted:
            return self.text
        document = pyimago.info(parts.storage, format=parts.format).to_dict()
        for snapshot in document.get("snapshots", ()):
            if all(snapshot[name.removeprefix("snapshot.")] == value for name, value in self.wanted.items()):
                return str(snapshot["id"])
        raise UsageError(f"Failed to load snapshot: there is none with {self.text}")


def snapshot_named(text: str | None) -> SnapshotName | None:
    """What `-l` says, if it was given."""
    return None if text is None else SnapshotName(text)


def no_backing(tree: Tree) -> bool:
    """Whether a tree says that nothing is below its image."""
    if tree.options.get("backing", tree) not in (None, ""):
        return False
    del tree.options["backing"]
    return True


def bypasses_cache(mode: str, what: str = "cache") -> bool:
    """Whether a cache mode bypasses the page cache."""
    if mode not in CACHES:
        raise UsageError(f"Invalid {what} option: {mode}")
    return CACHES[mode]


def format_of(name: str | None) -> Format | None:
    """A format by its name."""
    if name is None or name in FORMATS:
        return name  # type: ignore[return-value]
    raise UsageError(f"Unknown driver {name!r}: there are {', '.join((*FORMATS, *FILES))}")


def _check_driver(driver: str, filename: str) -> None:
    """Refuse a device where a file was promised, and the other way round, in qemu-img's words."""
    try:
        mode = os.stat(filename).st_mode  # noqa: PTH116  pathlib is slow to import
    except OSError:
        return  # opening it tells why
    if stat.S_ISBLK(mode) != (driver == "host_device"):
        kind = "a regular file" if driver == "file" else "either a character or block device"
        raise UsageError(f"'{driver}' driver requires '{filename}' to be {kind}")


def file_name(word: str) -> str:
    """The file that a plain word names."""
    protocol, colon, rest = word.partition(":")
    if not colon or protocol not in PROTOCOLS:
        return word
    if protocol == "file":
        return rest
    raise UsageError(f"{word}: images are in files and block devices; a file of that name is ./{word}")


def backing_name(word: str, *, verbatim: bool) -> str:
    """How an image shall name its backing file; `verbatim`: as it is spelled, whatever that means."""
    return word if verbatim else word.removeprefix("file:")


def _parsed(word: str) -> dict[str, Any]:
    """The options of `json:{...}`."""
    try:
        options = json.loads(QUOTED.sub(_double_quoted, word.removeprefix("json:")), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{word}: Could not parse the JSON options: {error}") from None
    if not isinstance(options, dict):
        raise UsageError(f"{word}: Invalid JSON object given")
    return cast("dict[str, Any]", options)


def _once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON: which of two members of one name counts is nobody's guess."""
    options = dict(members)
    if len(options) < len(members):
        raise ValueError("duplicate key")
    return options


def _double_quoted(quoted: re.Match[str]) -> str:
    """A string of JSON: QEMU takes single quotes, too."""
    text = quoted[0]
    if text[0] == '"':
        return text
    turned = QUOTE.sub(lambda quote: {"\\'": "'", '"': '\\"'}.get(quote[0], quote[0]), text[1:-1])
    return f'"{turned}"'


def _flat(word: str) -> dict[str, Any]:
    """The options of `name=value,...`."""
    parts = _layout.split([word])
    if not parts or "=" not in parts[0]:
        raise UsageError(f"{word}: with --image-opts an image is driver=...,file.filename=NAME")
    return dict(_layout.member(part) for part in parts)


def _nested(options: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    """The tree of options whose names say the way down with dots; trees within stay where they are."""
    if depth > DEPTH_MAX:
        raise UsageError(f"an image within an image within an image: {DEPTH_MAX} levels are enough")
    tree: dict[str, Any] = {}
    for name, value in options.items():
        first, dot, rest = name.partition(".")
        new: object = {rest: value} if dot else value
        there: object = tree.get(first)
        if isinstance(new, dict) and isinstance(there, dict):
            new = cast("dict[str, Any]", there | new)
        elif there is not None:
            raise UsageError(f"{name} and {first} exclude each other")
        tree[first] = new
    return {
        name: _nested(cast("dict[str, Any]", value), depth + 1) if isinstance(value, dict) else value
        for name, value in tree.items()
    }
