"""Which images below a folder have lost space, or worse: `find_leaks.py FOLDER [--repair]`.

A leak is space that nothing refers to, left by a crash; `--repair` gives it back. Corruption is only
told: look at that by hand (`pyimago check`). Images that a VM uses are left alone. Status 1 if anything
is left to do.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pyimago

QCOW2 = b"QFI\xfb"


def images(folder: Path) -> Iterator[Path]:
    """The qcow2 images below `folder`, by their first bytes: what a file is called says nothing."""
    for parent, _, names in os.walk(folder, onerror=lambda error: print(error, file=sys.stderr)):
        for name in sorted(names):
            path = Path(parent, name)
            try:
                if path.is_file() and not path.is_symlink():
                    with path.open("rb") as file:
                        if file.read(len(QCOW2)) == QCOW2:
                            yield path
            except OSError as error:
                print(f"{path}: {error.strerror}", file=sys.stderr)


def report(path: Path, *, repair: bool) -> bool:
    """Check one image and print what is wrong with it; whether it is in order now."""
    try:
        found = pyimago.check(path, format="qcow2", repair="leaks" if repair else "none")
        cluster = pyimago.info(path, format="qcow2").cluster_size or 0
    except pyimago.ImageLockedError:
        print(f"{path}: in use, not checked")
        return True
    except (OSError, pyimago.ImagoError) as error:
        print(f"{path}: {error}")
        return False
    if found.leaks_fixed:
        print(f"{path}: {found.leaks_fixed * cluster} bytes given back")
    if found.leaks:
        print(f"{path}: {found.leaks * cluster} bytes leaked")
    if found.corruptions or found.check_errors:
        print(f"{path}: {found.corruptions} corruptions, {found.check_errors} errors of the check")
    return found.clean


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="find qcow2 images that have lost space")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repair", action="store_true", help="give back what leaked")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder} is no folder")
    verdicts = [report(path, repair=arguments.repair) for path in images(arguments.folder)]
    print(f"{len(verdicts)} images, {verdicts.count(False)} with something left to do")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
