# Needs Python 3.11 or newer with venv, and make. Everything else goes into $(VENV).

PYTHON ?= python3
VENV ?= .venv
DEMO_STORE ?= $(CURDIR)/_demo
PYTEST_ARGS ?=
# How many processes the tests are spread over: three for two cores, for many tests wait for disks and other processes.
TEST_JOBS ?= $(shell expr $$(nproc) '*' 3 / 2)

BIN := $(VENV)/bin
# What ruff and mypy look at; folders that are not there yet are left out.
PYTHON_ROOTS := $(wildcard src client daemon tests)
LINT_ROOTS := $(PYTHON_ROOTS) $(wildcard docs/examples docs/*.py)
# Where there is anything for flake8-async to say; it takes minutes for all files.
ASYNC_FILES = $(shell grep -rlE '^ *async |\b(trio|anyio)\b' --include='*.py' $(LINT_ROOTS))

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Installing as root into an own environment is what is meant here.
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help demo test quick slow slow-sample faults bench check static format-check lint types examples docs format wheel clean
.DELETE_ON_ERROR:

help:
	@echo "make demo     run the example pipeline and show where its results are"
	@echo "make test     run the fast tests"
	@echo "make quick    the tests of the library alone, without daemons: two minutes"
	@echo "make check    everything a change must pass: format, lint, types, tests, documentation examples"
	@echo "make slow     the long tests"
	@echo "make faults   fail every system call, cut the power, kill what works, and look for what was lost"
	@echo "make bench    measure"
	@echo "make docs     write the reference of the language from the docstrings"
	@echo "make format   rewrite the code in the house format"
	@echo "make wheel    build dist/*.whl"
	@echo "make clean    remove what these commands made, $(VENV) too"

# --- environments -----------------------------------------------------------------------------
# A stamp per set of extras, so that nothing is installed twice until pyproject.toml changes.

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

# --- for users --------------------------------------------------------------------------------

demo: $(VENV)/.stamp-demo
	PYLIGHTNIX_ROOT='$(DEMO_STORE)' $(BIN)/python docs/examples/digits.py

# Compiled first, for most tests start interpreters, and where no bytecode may be written each of them would compile all.
test: $(VENV)/.stamp-test
	$(BIN)/python -m compileall -q $(PYTHON_ROOTS)
	$(BIN)/python tests/run.py -n $(TEST_JOBS) --dist worksteal $(PYTEST_ARGS)

# --- for those who change the code ------------------------------------------------------------

# The loop while editing: the library's own tests, on stores without a daemon.
quick: $(VENV)/.stamp-test
	$(BIN)/python -m compileall -q $(PYTHON_ROOTS)
	$(BIN)/python tests/run.py -n $(TEST_JOBS) --dist worksteal --quick tests/unit tests/property $(PYTEST_ARGS)

# All that is installed for the first is there for the second, so that no example is skipped in it.
check: static
	$(MAKE) test

static: format-check lint types

format-check: $(VENV)/.stamp-dev
	$(BIN)/ruff format --check $(LINT_ROOTS)

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check $(LINT_ROOTS)
	$(BIN)/flake8 $(ASYNC_FILES)

types: $(VENV)/.stamp-dev
	$(BIN)/mypy $(PYTHON_ROOTS) $(wildcard docs/*.py)

# With the demo's packages there, so that no example is skipped.
examples: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -n $(TEST_JOBS) tests/docs $(PYTEST_ARGS)

docs: $(VENV)/.stamp-dev
	$(BIN)/python docs/generate_reference.py

slow: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

# The first slow test of each file: what a bounded run can afford. Left out are measurements, and what
# the fast tests do already, only less often: state machines, kill -9 of a daemon.
slow-sample: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -m slow --collect-only -q \
	| grep -v -e '^tests/benchmarks/' -e '^tests/property/test_.*machine' -e '^tests/property/test_planner' -e '^tests/faults/test_daemon_killed' \
	| awk -F'::' '/::/ && !seen[$$1]++' \
	| tr '\n' '\0' | xargs -0 $(BIN)/python tests/run.py -n $(TEST_JOBS) -m slow --durations=0 $(PYTEST_ARGS)

# Shows the seeds and the figures. PYLIGHTNIX_FAULT_SECONDS bounds the samples; half an hour on two cores in all.
faults: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -s -m 'slow or not slow' tests/faults $(PYTEST_ARGS)

bench: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -s -m 'slow or not slow' tests/benchmarks $(PYTEST_ARGS)

format: $(VENV)/.stamp-dev
	$(BIN)/ruff format $(LINT_ROOTS)
	$(BIN)/ruff check --fix $(LINT_ROOTS)

wheel: | $(BIN)/python
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# A store is read-only on disk, so it needs its write permission back before it can go.
clean:
	if [ -d '$(DEMO_STORE)' ]; then chmod -R u+w '$(DEMO_STORE)'; fi
	rm -rf '$(DEMO_STORE)' $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find $(wildcard src client daemon tests docs) -name __pycache__ -type d -prune -exec rm -rf {} +
