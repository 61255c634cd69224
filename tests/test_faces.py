"""The verbs of `pyimago` and of `pyimago.aio` are the same, and say so to who looks at them."""

from __future__ import annotations

import inspect
import pickle
import pydoc
import subprocess
import sys
from typing import Any

import pytest

import pyimago
import pyimago.aio

MODULES: dict[str, tuple[Any, Any]] = {
    "": (pyimago, pyimago.aio),
    "bitmap.": (pyimago.bitmap, pyimago.aio.bitmap),
    "luks.": (pyimago.luks, pyimago.aio.luks),
    "snapshot.": (pyimago.snapshot, pyimago.aio.snapshot),
}
VERBS = [
    pytest.param(getattr(now, name), getattr(later, name), id=prefix + name)
    for prefix, (now, later) in MODULES.items()
    for name in later.__all__
    if not inspect.ismodule(getattr(later, name))
]


def test_there_are_the_same_verbs() -> None:
    for now, later in MODULES.values():
        verbs = [name for name in now.__all__ if inspect.isroutine(getattr(now, name))]
        assert [name for name in later.__all__ if inspect.isroutine(getattr(later, name))] == verbs
        assert verbs


@pytest.mark.parametrize(("now", "later"), VERBS)
def test_both_faces_show_their_parameters(now: Any, later: Any) -> None:
    signature = inspect.signature(now)
    assert next(iter(signature.parameters)) in ("path", "source", "first")
    assert inspect.signature(later).parameters == signature.parameters
    assert "Plan" not in str(signature)
    assert inspect.iscoroutinefunction(later) == (later is not pyimago.aio.open)


@pytest.mark.parametrize(("now", "later"), VERBS)
def test_both_faces_have_the_names_and_words_of_what_they_do(now: Any, later: Any) -> None:
    assert later.__module__ == now.__module__.replace("pyimago", "pyimago.aio") or now is pyimago.open
    for verb in (now, later):
        assert pickle.loads(pickle.dumps(verb)) is verb
    arguments = inspect.getdoc(now).partition("\n\n")[2]  # type: ignore[union-attr]
    assert arguments in inspect.getdoc(later)  # type: ignore[operator]
    assert "wait" in inspect.getdoc(later)  # type: ignore[operator]


def test_help_shows_what_a_user_types() -> None:
    shown = pydoc.plain(pydoc.render_doc(pyimago.aio.snapshot.create))
    assert "async create(path: 'Place', name: 'str', *, id: 'str | None' = None," in shown
    assert "-> 'Snapshot'" in shown
    assert "\n    Args:\n        path: The image" in shown
    assert "\n    Awaited: cancelling" in shown


def test_the_awaited_verbs_are_there_without_importing_them() -> None:
    program = "import sys, pyimago; assert 'pyimago.aio' not in sys.modules; print(pyimago.aio.snapshot.list)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("<function list")
