"""These tests want the machine that `make test-vm` makes; elsewhere they are not even collected."""

import os

collect_ignore = [] if os.environ.get("PYIMAGO_GUEST") else ["guest"]
