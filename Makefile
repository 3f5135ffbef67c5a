# `make demo` and `make test` are all a newcomer needs; each sets up what it uses.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A file's tests share what they set up, and stay together.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# Those of the full tier wait a good deal, for servers and for what is slow on purpose: one more than there are cores.
PYTEST_FULL := $(BIN)/python -m pytest --numprocesses $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1) --dist loadfile

.PHONY: demo test test-full lint format golden constraints stack stack-down stack-status clean help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# The stamp is newer than what it was made from, or the environment is made again.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("deepspec needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,stack]'
	touch $(READY)

demo: $(READY)  ## run the whole pipeline on inputs it makes itself
	$(BIN)/deepspec demo

test: $(READY)  ## unit, property, parity and end-to-end tests
	$(PYTEST) -m 'not full'

test-full: $(READY)  ## all tests: also kills, the browser and statistics
	bash infra/install_services.sh browser services
	$(PYTEST_FULL) --durations 40

lint: $(READY)  ## formatting, lint, types, layering
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.stage_lock --check

format: $(READY)  ## format in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

golden: $(READY)  ## rewrite the golden files (then read the difference)
	$(BIN)/python -m pytest -q -m 'not full' tests -k golden --golden
	$(BIN)/python -m tests.stage_lock --write

constraints: $(READY)  ## rewrite constraints.txt from the environment as it is
	$(BIN)/python -m tests.constraints > constraints.txt

stack: $(READY)  ## start what production runs, without containers (infra/README.md)
	bash infra/install_services.sh services
	$(BIN)/python -m infra.stack up

stack-down: $(READY)  ## end it; its data stay
	$(BIN)/python -m infra.stack down

stack-status: $(READY)  ## say what of it is up
	@$(BIN)/python -m infra.stack status

clean:  ## remove the environment and caches (results in .deepspec stay)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
