# make demo | test | test-all | docs | readme | lint | format | install | clean
# Needs only Python 3.11 to 3.13 with pip. Another interpreter: make test PYTHON=/usr/bin/python3.12,
# in an environment of its own, .venv-3.12, with the versions of constraints/3.12.txt.

BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
WORKERS ?= 2
DEMO_OUT := runs/demo

# The first of these that starts and is new enough.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV ?= .venv$(if $(filter command% environment%,$(origin PYTHON)),-$(VERSION))
CONSTRAINTS := constraints/$(VERSION).txt

.PHONY: help install demo test test-all docs readme lint format clean

help:
	@sed -n '1,2s/^# //p' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)

# A venv module without ensurepip (Debian splits it off) is no obstacle: pip installs pip.
$(STAMP): pyproject.toml $(wildcard $(CONSTRAINTS))
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found: pass PYTHON=..." >&2; exit 1; }
	@test -f $(CONSTRAINTS) || { echo "$(PYTHON) is Python $(VERSION), and the tested ones are" \
	  "$(patsubst constraints/%.txt,%,$(sort $(wildcard constraints/*.txt))): pass PYTHON=..." >&2; exit 1; }
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "Making $(VENV) with $(PYTHON)"; \
	  $(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 \
	  || { $(PYTHON) -m venv --clear --without-pip $(VENV) \
	    && $(PYTHON) -m pip --python $(BIN)/python install -q --disable-pip-version-check pip; }; \
	fi
	@echo "Installing into $(VENV) (some minutes the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
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

# Warnings are errors, every link is checked, tutorials are run; nothing is fetched.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The site is in site/: open site/index.html (its search needs a server: $(BIN)/python -m http.server -d site)"

# The table of rules, from their signatures and docstrings.
readme: $(STAMP)
	$(BIN)/python -m docs.tables

# Keeps runs/ other than the demo, and the environment: to renew that, delete .venv.
clean:
	rm -rf build dist site *.egg-info .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis $(DEMO_OUT)
	find imbsam_jax experiments benchmarks tests -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
