# make demo | test | test-all | lint | format | install | clean
# Needs only Python 3.11 to 3.13 with pip. Another interpreter: make test PYTHON=/usr/bin/python3.12

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
DEMO_OUT := runs/demo

# The first of these that starts and is new enough.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

.PHONY: help install demo test test-all lint format clean

help:
	@sed -n '1,2s/^# //p' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)

# A venv module without ensurepip (Debian splits it off) is no obstacle: pip installs pip.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found: pass PYTHON=..." >&2; exit 1; }
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "Making $(VENV) with $(PYTHON)"; \
	  $(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 \
	  || { $(PYTHON) -m venv --clear --without-pip $(VENV) \
	    && $(PYTHON) -m pip --python $(BIN)/python install -q --disable-pip-version-check pip; }; \
	fi
	@echo "Installing into $(VENV) (some minutes the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m experiments.digits_lt --out $(DEMO_OUT) --overwrite
	@echo "Plots and tables are in $(DEMO_OUT):"
	@find $(DEMO_OUT) -name '*.png' | sort

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# By file: what a module's tests share is made once, in one worker.
test: lint
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --durations=15 -m "not slow"

test-all: lint
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --durations=15

# Keeps runs/ other than the demo, and the environment: to renew that, delete .venv.
clean:
	rm -rf build dist *.egg-info .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis $(DEMO_OUT)
	find imbsam_jax experiments benchmarks tests -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
