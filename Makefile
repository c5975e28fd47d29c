# Every target does its own set-up: Python 3.11 to 3.13, make and a package index are all that is needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := $(VENV)/.installed
DEV    := $(VENV)/.installed-dev

# Threads that spin while they wait slow down whatever else runs; two test processes have a core each.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: install demo test lint test-slow bench gpu lock clean

install: $(RUN)  ## install strop into .venv

demo: $(RUN)  ## tune a real model and show what it learned
	$(BIN)/strop demo

test: $(DEV) lint  ## lint, types, import directions, all fast tests
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

lint: $(DEV)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

test-slow: $(DEV)  ## what takes minutes: real models against other stacks, the demo's promise
	$(BIN)/python -m pytest -m slow

bench: $(DEV)  ## speed, memory and losses beside the peers, and forecasts beside facts: two hours alone on the machine
	$(BIN)/python benchmarks/against_peft.py --json benchmarks/results/against_peft.json
	$(BIN)/python benchmarks/cpu_peers.py --sides all --busy --json
	$(BIN)/python benchmarks/memory_curve.py --json benchmarks/results/memory_curve.json
	$(BIN)/python benchmarks/steady.py --json benchmarks/results/steady.json

gpu: $(DEV)  ## what needs a CUDA device: correctness there
	$(BIN)/python -m pytest -m gpu -rs

lock: pyproject.toml  ## make requirements.lock again from the ranges in pyproject.toml
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-lock/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)-lock/bin/python -m pip install --quiet --group dev -e .
	{ echo "# Versions for development and tests; \`make lock\` makes this file. The package itself accepts ranges."; \
	  $(VENV)-lock/bin/python -m pip freeze --exclude-editable | sed "s/+cpu//; s/^triton==.*/&; platform_system == 'Linux' and platform_machine == 'x86_64'/"; } > requirements.lock
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(RUN): pyproject.toml requirements.lock | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e .
	@touch $@

$(DEV): pyproject.toml requirements.lock $(RUN)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@
