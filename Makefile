# Needs Rust (stable), CPython >= 3.11 and a C compiler; all else goes into .venv. `make help` lists the targets.

VENV   ?= .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

CARGO_FLAGS := --workspace --all-features --locked
FUZZ_TARGETS := open_and_read check write_and_check
PY_TREES    := python examples tests bench
# Folders too: a file that went away shows in its folder's time.
WHEEL_FILES := $(shell find rust/core rust/python python -name __pycache__ -prune -o \( -type d -o -name '*.rs' -o -name '*.toml' \
	-o -name '*.py' -o -name '*.pyi' -o -name py.typed \) -print) Cargo.toml Cargo.lock pyproject.toml README.md

# Prints the requirements at a path of pyproject.toml, one to a line.
requirements = $(BIN)/python -c 'import functools, sys, tomllib; \
	print(*functools.reduce(dict.__getitem__, sys.argv[1:], tomllib.load(open("pyproject.toml", "rb"))), sep="\n")'
pip_install = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-long test-vm soak fuzz test-rust test-python bench bench-stop wheel wheel-check install dev fmt lint deny typecheck \
	stubtest qemu demo-image clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  %-12s %s\n", $$1, $$2 }'

demo: install ## Build and install the wheel, then read, write and convert a real image
	@$(BIN)/python examples/demo.py

test: qemu lint typecheck test-rust stubtest wheel-check test-python ## Everything: lint, types, Rust tests, stub test, Python tests

test-long: install dev qemu ## The minutes-long tests too: more cases, bigger images
	IMAGO_TEST_SCALE=16 cargo test --release $(CARGO_FLAGS) -- --include-ignored
	$(BIN)/python -m pytest

soak: qemu ## Random scripts with crash images and failing storage for SOAK_MINUTES (30)
	SOAK_MINUTES=$(or $(SOAK_MINUTES),30) cargo test --release --locked -p imago-core --all-features --test qcow2_faults soak -- --nocapture

# Each target for FUZZ_SECONDS, from a corpus of small images. What libFuzzer needs of the compiler is unstable: RUSTC_BOOTSTRAP lets a stable
# one do it, too.
fuzz: qemu ## Fuzz opening, checking and writing for FUZZ_SECONDS (60) each (needs cargo-fuzz)
	@cargo fuzz --version > /dev/null 2>&1 || { echo "make fuzz needs cargo-fuzz: cargo install cargo-fuzz" >&2; exit 1; }
	cd rust/fuzz && cargo run --release --quiet --bin seeds $(addprefix corpus/,$(FUZZ_TARGETS))
	cd rust/fuzz && $(foreach target,$(FUZZ_TARGETS),RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir . $(target) -- \
		-max_total_time=$(or $(FUZZ_SECONDS),60) -max_len=1048576 -rss_limit_mb=2048 &&) true

test-rust: ## Rust tests and doctests
	cargo test $(CARGO_FLAGS)

test-python: install dev ## Python tests, from the installed wheel
	$(BIN)/python -m pytest -m 'not long'

test-vm: install dev qemu ## Block devices and reflinks, in a virtual machine (all else of it is downloaded; slow without KVM)
	$(BIN)/python tests/vm/run.py $(PYTEST_ARGS)

bench: install qemu $(STAMPS)/bench ## Measure against os.preadv, asyncio and QEMU; prints the README's table
	$(BIN)/python -m bench

bench-stop: install qemu $(STAMPS)/bench ## Measure how long each long operation takes to be stopped
	$(BIN)/python -m bench.stopping

wheel: dist/.stamp ## Build the abi3 wheel into dist/
	@ls dist/*.whl

# An environment of its own, no index, no compiler on the path: what a user without Rust has. Without what only the
# command imports, too: the library needs nothing.
wheel-check: dist/.stamp ## Install the wheel where no compiler is and run the demo there
	rm -rf target/wheel-check
	$(PYTHON) -m venv target/wheel-check
	env -i PATH=$(CURDIR)/target/wheel-check/bin python -m pip install --quiet --disable-pip-version-check --no-index --no-deps dist/*.whl
	env -i PATH=$(CURDIR)/target/wheel-check/bin python examples/demo.py > /dev/null

install: $(STAMPS)/installed ## Install the wheel into .venv

dev: $(STAMPS)/dev ## Install the development tools into .venv

fmt: dev ## Format Rust and Python
	cargo fmt --all
	$(BIN)/ruff check --fix-only --quiet $(PY_TREES)
	$(BIN)/ruff format --quiet $(PY_TREES)

lint: dev ## rustfmt, ruff, clippy, cargo deny: check only
	cargo fmt --all --check
	$(BIN)/ruff format --check $(PY_TREES)
	$(BIN)/ruff check $(PY_TREES)
	cargo clippy $(CARGO_FLAGS) --all-targets -- -D warnings
	@if cargo deny --version > /dev/null 2>&1; then $(MAKE) --no-print-directory deny; \
		else echo "cargo deny is not installed: licences and sources of dependencies not checked"; fi

deny: ## Check licences and sources of the dependencies (needs cargo-deny)
	cargo deny --locked check bans licenses sources

typecheck: dev ## mypy --strict and pyright over package, tests and examples
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

stubtest: install dev ## Hold _native.pyi against the built module
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml pyimago._native

qemu: ## Install qemu-utils (for the differential tests) where apt-get may
	@command -v qemu-img > /dev/null && command -v qemu-io > /dev/null || { \
		sudo=; [ "$$(id -u)" = 0 ] || sudo='sudo -n'; \
		command -v apt-get > /dev/null && { $$sudo apt-get -qq update; \
			DEBIAN_FRONTEND=noninteractive $$sudo apt-get -qq install -y --no-install-recommends qemu-utils; } > /dev/null 2>&1; \
		} || echo "qemu-utils is not installed: the tests that compare with QEMU will be skipped"

demo-image: ## Make the demo image again (needs qemu-utils and e2fsprogs)
	tests/data/demo/make-demo-image.sh

clean: ## Remove everything that was built
	rm -rf $(VENV) dist target .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(PY_TREES) -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMPS)/venv:
	@[ -n "$(PYTHON)" ] || { echo "no CPython >= 3.11 found; set PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/build: pyproject.toml $(STAMPS)/venv
	$(requirements) build-system requires > $@.txt
	$(pip_install) -r $@.txt
	@touch $@

$(STAMPS)/dependencies: pyproject.toml $(STAMPS)/venv
	$(requirements) project dependencies > $@.txt
	$(pip_install) -r $@.txt
	@touch $@

$(STAMPS)/dev $(STAMPS)/bench: $(STAMPS)/%: $(STAMPS)/dependencies
	$(requirements) project optional-dependencies $* > $@.txt
	$(pip_install) -r $@.txt
	@touch $@

dist/.stamp: $(WHEEL_FILES) $(STAMPS)/build
	rm -f dist/pyimago-*.whl
	$(BIN)/maturin build --release --locked --out dist
	@touch $@

$(STAMPS)/installed: dist/.stamp $(STAMPS)/dependencies
	$(pip_install) --force-reinstall --no-deps dist/pyimago-*.whl
	@touch $@
