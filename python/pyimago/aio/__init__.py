"""The same verbs, awaited: `async with pyimago.aio.open("image.qcow2") as image:`.

Cancelling a task ends what it awaits as soon as that is safe. Functions (`progress`, `implicit`, `secret`)
and the `write` of a stream run on another thread.
"""

from pyimago import _native, _verbs
from pyimago._faces import awaited, opening
from pyimago.aio import bitmap, luks, snapshot

__all__ = [
    "open",
    "create",
    "info",
    "info_chain",
    "convert",
    "dd",
    "check",
    "compare",
    "hash",
    "measure",
    "amend",
    "rebase",
    "commit",
    "resize",
    "map",
    "bench",
    "snapshot",
    "bitmap",
    "luks",
]

open = opening(_native.open_awaited)
create = awaited(_verbs.create)
info = awaited(_verbs.info)
info_chain = awaited(_verbs.info_chain)
convert = awaited(_verbs.convert)
dd = awaited(_verbs.dd)
check = awaited(_verbs.check)
compare = awaited(_verbs.compare)
hash = awaited(_verbs.hash)
measure = awaited(_verbs.measure)
amend = awaited(_verbs.amend)
rebase = awaited(_verbs.rebase)
commit = awaited(_verbs.commit)
resize = awaited(_verbs.resize)
map = awaited(_verbs.map)
bench = awaited(_verbs.bench)
