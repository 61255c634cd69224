"""The Python programs of the README and of the user guide run as they stand there."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = [
    pytest.param(program, id=f"{document}-{number}")
    for document in ("README.md", "docs/guide.md")
    for number, program in enumerate(
        re.findall(r"^```python\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    )
]


def test_readme_holds_the_programs() -> None:
    text = (ROOT / "README.md").read_text()
    assert "SyncFormatAccess(qcow2)" in text
    assert "await image.flush()" in text


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_runs(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Await at the top level is allowed, as in `python -m asyncio`."""
    for name, source in (("image.qcow2", "guest.qcow2"), ("base.qcow2", "base.qcow2")):
        shutil.copyfile(ROOT / "tests" / "data" / "demo" / source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    code = compile(program, "program", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    async def run() -> None:
        result = eval(code, {"__name__": "__main__"})
        if inspect.isawaitable(result):
            await result

    asyncio.run(run())
