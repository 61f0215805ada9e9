# `make help` lists the targets. Each sets up what it needs in $(VENV), once per pyproject.toml.
# Overridable: VENV, PYTHON, ARGS (more arguments for pytest).

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
ARGS ?=

# The first interpreter that is new enough, can make environments, and really starts: a version
# manager may leave a command on the path that only prints an error.
USABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,\
	$(shell $(name) -c '$(USABLE)' >/dev/null 2>&1 && echo $(name))))

PIP_INSTALL := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check
PYTEST := $(VENV)/bin/python -m pytest -n auto --maxprocesses 4

# Files whose tests compare with torch or load published weights.
TORCH_TESTS = $(shell grep -rlwE 'torch|real_weights' tests --include='test_*.py')

DEMO_MIXTURE := examples/dog_and_cello.flac
DEMO_OUT := out/demo

.PHONY: help demo test test-browser test-torch test-aot lint venv venv-torch venv-aot clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

demo: venv  ## find and separate the sources of an example mixture, into out/demo
	@echo "== separating $(DEMO_MIXTURE)"
	@rm -rf $(DEMO_OUT)
	@$(VENV)/bin/python -m opensep_jax.infer $(DEMO_MIXTURE) --out $(DEMO_OUT) --report
	@echo "== done. Listen: the mixture is $(DEMO_MIXTURE); its stems and the residual are"
	@find $(DEMO_OUT) -type f ! -name '*.json*' ! -name index.html | sort | sed 's/^/   /'
	@echo "   Look: $(DEMO_OUT)/index.html has players and spectrograms; caption, names, properties and timings are in"
	@find $(DEMO_OUT) -type f -name '*.json*' | sort | sed 's/^/   /'

test: venv  ## fast tests; those against torch skip where torch is absent
	@$(PYTEST) $(ARGS)

test-browser: venv  ## the page of results, driven in Chromium if it is here
	@$(VENV)/bin/python -m pytest -m browser -rs tests/batch/test_report_browser.py $(ARGS)

test-torch: venv-torch  ## parity with the published torch models, and tests on real weights
	@$(PYTEST) -m "not slow and not aot" $(TORCH_TESTS) $(ARGS)

test-aot: venv-aot  ## compile ahead of time for a TPU topology (no TPU needed)
	@$(PYTEST) -m aot $(ARGS)

lint: venv  ## ruff check and ruff format --check
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

venv: $(VENV)/.installed  ## the environment for demo, test and lint
venv-torch: $(VENV)/.installed-torch
venv-aot: $(VENV)/.installed-aot

$(VENV)/.installed: pyproject.toml
	@if ! $(VENV)/bin/python -m pip --version >/dev/null 2>&1; then \
	  if [ -z "$(PYTHON)" ]; then \
	    echo "No Python 3.11 or newer with the venv module was found: set PYTHON=/path/to/python." >&2; exit 1; \
	  fi; \
	  echo "== creating $(VENV) with $(PYTHON)"; \
	  $(PYTHON) -m venv --clear $(VENV); \
	fi
	@echo "== installing opensep-jax and its dependencies into $(VENV) (minutes the first time)"
	@$(PIP_INSTALL) --upgrade pip
	@$(PIP_INSTALL) --editable '.[test]'
	@touch $@

$(VENV)/.installed-torch: $(VENV)/.installed
	@echo "== installing torch into $(VENV) (a large download)"
	@$(PIP_INSTALL) --editable '.[test,test-torch]'
	@touch $@

$(VENV)/.installed-aot: $(VENV)/.installed
	@echo "== installing the TPU compiler into $(VENV)"
	@$(PIP_INSTALL) --editable '.[test,tpu]'
	@touch $@

clean:  ## remove .venv, caches, builds and out/
	@rm -rf .venv out build dist .pytest_cache .ruff_cache *.egg-info
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
