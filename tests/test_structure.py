"""The arrows of docs/architecture.md: what each room of the engine may not name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "rust" / "core" / "src"

FORBIDDEN = {
    "format": r"\b(pyo3|tokio|async fn|libc)\b|std::fs|crate::access",
    "storage": r"\b(pyo3|tokio|async fn)\b|crate::(access|format)",
    "access": r"\b(pyo3|libc)\b|std::fs",
}
#: The only places where `unsafe` may stand, see docs/architecture.md.
MAY_BE_UNSAFE = (
    "rust/core/src/buffer.rs",
    "rust/core/src/storage/file",
    "rust/core/src/storage/uring",
    "rust/python/src/bridge",
    "rust/python/src/buffers",
)


def code_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a Rust file without comments and without its tests."""
    lines = path.read_text().split("\n#[cfg(test)]")[0].splitlines()
    return [(n, line) for n, line in enumerate(lines, 1) if not line.lstrip().startswith("//")]


@pytest.mark.parametrize("room", FORBIDDEN)
def test_arrows_point_down(room: str) -> None:
    up = [
        f"{path.relative_to(ROOT)}:{n}: {line.strip()}"
        for path in sorted((CORE / room).rglob("*.rs"))
        if path.stem != "tests"
        for n, line in code_lines(path)
        if re.search(FORBIDDEN[room], line)
    ]
    assert not up, "\n".join(up)


def test_unsafe_stays_in_its_rooms() -> None:
    stray = [
        f"{path.relative_to(ROOT)}:{n}"
        for crate in ("core", "python")
        for path in sorted((ROOT / "rust" / crate / "src").rglob("*.rs"))
        if not str(path.relative_to(ROOT)).startswith(MAY_BE_UNSAFE)
        for n, line in code_lines(path)
        if re.search(r"\bunsafe\b", line)
    ]
    assert not stray, "\n".join(stray)


def test_source_files_stay_small() -> None:
    large = {
        str(path.relative_to(ROOT)): len(code_lines(path))
        for folder in ("rust", "python")
        for suffix in ("*.rs", "*.py")
        for path in (ROOT / folder).rglob(suffix)
        if len(code_lines(path)) > 800
    }
    assert not large, large
