# `make demo` and `make test` work from a bare clone with Python 3.11 or newer: they make the virtual environment
# themselves. Everything that is installed is named in pyproject.toml.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

SEED ?= $(shell date +%s)
# With CONSTRAINTS=constraints.txt, `make install` installs the versions that the last release was tested with, and in
# the tests a warning is an error. Without, a newer version of a dependency may warn.
CONSTRAINTS ?=
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(if $(CONSTRAINTS),-W error)

.PHONY: help install demo test test-all test-random lint docs constraints format clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml spectro/__init__.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --editable '.[dev]' \
		$(if $(CONSTRAINTS),--constraints $(CONSTRAINTS))
	@touch $(READY)

install: $(READY)  ## make the virtual environment .venv with everything in it

demo: $(READY)  ## render, fine-tune, evaluate and classify on the embedded corpus
	$(BIN)/python scripts/demo.py

lint: $(READY)  ## format, lint, types, and which room imports which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks
	$(BIN)/lint-imports

test: lint  ## lint, then the tests but for the slow ones, on up to four cores
	$(PYTEST)

test-all: lint  ## lint, then all tests
	$(PYTEST) -m ""

test-random: lint  ## lint, then all tests in another order; SEED=N is an earlier order again
	$(PYTEST) -m "" --random-order --random-order-seed=$(SEED)

docs: $(READY)  ## build the documentation into site/; open site/index.html
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

constraints: $(READY)  ## write constraints.txt: the version of every package that would be installed today
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --no-annotate --no-header --quiet --no-emit-index-url \
		| grep -v '^spectro' > constraints.txt

format: $(READY)  ## format the code in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the virtual environment and what the demo made
	rm -rf $(VENV) data/demo checkpoints/demo
