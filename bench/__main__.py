"""Measure, and print the README's table.

The images are made in $TMPDIR (some 8 GiB; a folder on a disk, not in memory) and removed at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from .lab import FULL, QUICK, Lab, run
from .measure import Bound, Figure, Round, interleave, ratios, reached
from .rows import ROWS, Row


def cell(figures: dict[Figure, float], figure: Figure, targets: tuple[Bound, ...]) -> str:
    """A figure reached; one that misses its target is marked."""
    if figure not in figures:
        return "-"
    value = figures[figure]
    text = f"{value:.0f} {figure}" if figure in {"MiB", "ms"} else f"{value:#.3g}"
    held = all(bound.holds(value) for bound in targets if bound.figure == figure)
    return text if held else f"**{text}** (miss)"


def line(row: Row, done: list[Round]) -> str:
    """The row in Markdown; a peak of memory or a delay stands under both figures' heading once."""
    figures = reached(done, row.sign)
    second: Figure = "wall" if "wall" in figures else next(iter(figures))
    target = ", ".join(map(str, row.targets))
    cells = (
        row.work,
        row.against,
        target,
        cell(figures, "CPU", row.targets),
        cell(figures, second, row.targets)
        + (f", {cell(figures, 'size', row.targets)} size" if "size" in figures else ""),
    )
    return f"| {' | '.join(cells)} |"


def record(row: Row, done: list[Round]) -> dict[str, object]:
    """The row for a program: every peer's ratios, every round's costs in seconds an operation."""
    figures = reached(done, row.sign)
    return {
        "name": row.name,
        "work": row.work,
        "against": row.against,
        "targets": [asdict(bound) for bound in row.targets],
        "reached": figures,
        "held": all(bound.holds(figures[bound.figure]) for bound in row.targets),
        "ratios": ratios(done, row.sign),
        "rounds": [{name: asdict(cost) for name, cost in one.items()} for one in done],
    }


def machine() -> str:
    """What it ran on."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    qemu = run("qemu-img", "--version").split()[2]
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return f"{os.cpu_count()} CPUs, {system}, {python}, QEMU {qemu}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = [row.name for row in ROWS]
    parser.add_argument(
        "--quick", action="store_true", help="tiny images and few rounds: does it run, not how fast"
    )
    parser.add_argument(
        "--only", metavar="NAME", action="append", choices=names, help=f"one row, or more: {', '.join(names)}"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every round's figures there, too")
    parser.add_argument("--uvloop", action="store_true", help="await on uvloop instead of asyncio's own loop")
    options = parser.parse_args()
    missing = [tool for tool in ("qemu-img", "qemu-io") if shutil.which(tool) is None]
    if missing:
        sys.exit(f"{' and '.join(missing)} not found: install QEMU's tools (Debian: qemu-utils)")
    loop = asyncio.new_event_loop
    if options.uvloop:
        from uvloop import new_event_loop as loop

    scale = QUICK if options.quick else FULL
    print(
        "| work | against | target | reached (CPU) | reached (wall) |",
        "|---|---|---|---|---|",
        sep="\n",
        flush=True,
    )
    records: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="pyimago-bench-") as folder:
        lab = Lab(Path(folder), scale, loop)
        for row in ROWS:
            if options.only and row.name not in options.only:
                continue
            with row.sides(lab) as sides:
                done = interleave(sides, seconds=scale.seconds, rounds=min(scale.rounds, row.rounds))
            print(line(row, done), flush=True)
            records.append(record(row, done))
    size, policy = scale.size >> 20, loop.__module__.partition(".")[0]
    print(f"\nImages of {size} MiB, page cache hot unless direct; {machine()}; awaited on {policy}'s loop.")
    print(
        f"Medians of {scale.rounds} or more interleaved rounds (3 where a round is long)"
        " against the strongest peer."
    )
    if options.json:
        options.json.write_text(
            json.dumps({"machine": machine(), "image_mib": size, "rows": records}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
