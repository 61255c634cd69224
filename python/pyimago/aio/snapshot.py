"""Snapshots inside an image in a file, awaited: `pyimago.aio.snapshot`."""

from pyimago import snapshot
from pyimago._faces import awaited

__all__ = ["list", "create", "apply", "delete", "rename"]

list = awaited(snapshot.list)
create = awaited(snapshot.create)
apply = awaited(snapshot.apply)
delete = awaited(snapshot.delete)
rename = awaited(snapshot.rename)
