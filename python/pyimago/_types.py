"""Names for types."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal, TypeAlias

from pyimago._native import FormatAccess, Storage, SyncFormatAccess

StrPath: TypeAlias = str | os.PathLike[str]
Format: TypeAlias = Literal["raw", "qcow2"]
Backing: TypeAlias = FormatAccess | SyncFormatAccess
DataFile: TypeAlias = Storage | StrPath
Implicit: TypeAlias = Literal["beside", "deny", "allow"] | Callable[[str, str], object]
