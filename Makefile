# A fresh Debian or macOS machine with Python 3.11+, make and git: `make demo`. Everything lives in .venv.
#
# Torch goes in first, from PyTorch's CPU index, so that no CUDA libraries are downloaded. With a GPU:
#   make env TORCH_INDEX=https://download.pytorch.org/whl/cu130    (or TORCH_INDEX= for the default index)
# An empty TORCH_INDEX means the index that pip is configured with. TORCH may name another release.

TORCH       ?= torch==2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# The interpreter to build .venv with; empty: the first of these that is 3.11 or newer.
PYTHON      ?=
CANDIDATES  := python3.11 python3 python3.12 python3.13
# Seconds a single test may take.
TIMEOUT     ?= 600

BIN   := .venv/bin
STAMP := .venv/.stamp
# The oldest releases that UVR supports, as downstream/oldest.txt has them, and the tests that could tell.
OLDEST       := .venv-oldest
OLDEST_TESTS := $(addprefix tests/,adapters core/engine core/intercept integration compatibility zoo/test_zoo.py)
.DEFAULT_GOAL := help
# Some of these print on import, so they stay out of the environment whose output the tests read.
INT8 := .venv/int8
.PHONY: help env demo demo-all figures test test-fast test-oldest test-int8 lint types format wheel clean distclean

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

env: $(STAMP)  ## .venv with everything, CPU torch first

demo: $(STAMP)  ## first pictures of one pipeline, unregulated beside regulated, in out/demo: under a minute
	@$(BIN)/uvr demo --out out/demo

demo-all: $(STAMP)  ## every pipeline measured against its gates, with controls, in out/demo: minutes
	$(BIN)/uvr demo --all --out out/demo

figures: demo-all  ## every figure in docs, measured anew: an hour and a half on two cores with nothing else running
	$(BIN)/python tools/benchmarks/demo.py out/demo --out docs/figures
	$(BIN)/python tools/benchmarks/ablation.py --out docs/figures
	for name in builtins flows refusal transfer results "robustness --again" performance; do \
	  set -- $$name; script=$$1; shift; $(BIN)/python tools/benchmarks/$$script.py --out docs $$@ || exit 1; \
	done

test: lint types  ## everything CI checks
	$(BIN)/python -m pytest -q -m "not bench" --timeout $(TIMEOUT)

test-fast: lint types  ## the same without what takes more than ten seconds: minutes
	$(BIN)/python -m pytest -q -m "not bench and not slow and not wheel" --timeout $(TIMEOUT)

test-int8: $(STAMP)  ## the situations that need torchao, bitsandbytes, gguf, optimum-quanto or cache-dit
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(INT8) "torchao>=0.18" "bitsandbytes>=0.50" \
	  "gguf>=0.19" "optimum-quanto>=0.2.7" "cache-dit>=1.5"
	PYTHONPATH=$(INT8) $(BIN)/python -m pytest -q --timeout $(TIMEOUT) tests/compatibility -k "quantised or cache-dit"

test-oldest: $(OLDEST)/.stamp  ## the tests that meet diffusers, beside the oldest releases that UVR supports
	$(OLDEST)/bin/python -m pytest -q -m "not bench and not wheel" --timeout $(TIMEOUT) $(OLDEST_TESTS)

lint: $(STAMP)  ## ruff: rules and layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy, strict on uvr_core
	$(BIN)/mypy

format: $(STAMP)  ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(STAMP)  ## dist/*.whl: uvr-core and uvr-zoo
	$(BIN)/python -m build --wheel --no-isolation
	$(BIN)/python -m build --wheel --no-isolation --outdir dist extras/uvr_zoo

clean:  ## remove what the verbs made, but keep .venv
	rm -rf build dist out .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find uvr_core adapters plugins extras tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove .venv and .venv-oldest as well
	rm -rf .venv $(OLDEST)

.venv/bin/python:
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
	  for name in $(CANDIDATES); do \
	    if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ]; then \
	  echo "make env: found no Python 3.11 or newer (tried $(CANDIDATES))." >&2; \
	  echo "Install one, or name it: make env PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	echo "$$python -m venv .venv"; \
	$$python -m venv .venv || { \
	  rm -rf .venv; \
	  echo "make env: '$$python -m venv .venv' failed." >&2; \
	  echo "On Debian and Ubuntu: sudo apt install python3-venv. Elsewhere: make env PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }

# $(call install-torch,ENVIRONMENT): torch, and a constraint that keeps the next install from replacing it.
define install-torch
	@if [ -n "$(TORCH_INDEX)" ]; then \
	  $(1)/bin/python -m pip install --no-deps --retries 2 --timeout 15 --index-url "$(TORCH_INDEX)" "$(TORCH)" \
	  || { echo "make env: no $(TORCH) from $(TORCH_INDEX); asking pip's default index instead." >&2; \
	       $(1)/bin/python -m pip install --no-deps "$(TORCH)"; }; \
	else \
	  $(1)/bin/python -m pip install --no-deps "$(TORCH)"; \
	fi
	@$(1)/bin/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $(1)/torch.txt
endef

$(STAMP): pyproject.toml extras/uvr_zoo/pyproject.toml | .venv/bin/python
	$(call install-torch,.venv)
	$(BIN)/python -m pip install --constraint .venv/torch.txt --editable ".[zoo,eval,judges,dev]" --editable extras/uvr_zoo
	@touch $@

# Made anew from scratch when a bound changes: an old release that pip left in place would prove nothing.
$(OLDEST)/.stamp: pyproject.toml extras/uvr_zoo/pyproject.toml downstream/oldest.txt | .venv/bin/python
	$(BIN)/python -m venv --clear $(OLDEST)
	$(call install-torch,$(OLDEST))
	$(OLDEST)/bin/python -m pip install --constraint $(OLDEST)/torch.txt --constraint downstream/oldest.txt \
	  --editable ".[zoo,eval,dev]" --editable extras/uvr_zoo
	@touch $@
