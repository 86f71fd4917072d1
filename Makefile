# Everything a person types: `make quickstart`, `make test`. `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
STUDY := configs/quickstart.yaml
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow check format system-packages clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"scaling needs Python 3.11 or newer, {sys.executable} is {v.major}.{v.minor}. Name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

.venv/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: .venv/.installed ## set everything up, then run configs/quickstart.yaml end to end
	$(BIN)/scaling run $(STUDY)

test: .venv/.installed-dev system-packages ## set everything up, then run the test suite
	$(BIN)/python -m pytest -m 'not slow'

test-slow: .venv/.installed-dev system-packages ## the longer tests, which .ci/run runs too
	$(BIN)/python -m pytest -m slow

check: .venv/.installed-dev ## ruff, mypy --strict, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_import_rules.py

format: .venv/.installed-dev ## rewrite the sources in the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The browser tests need Chromium: installed as root where it is missing, otherwise those tests skip and say so.
system-packages:
	@if command -v chromium >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		echo "installing chromium for the browser tests"; \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } >/dev/null; \
	else echo "chromium is missing: the browser tests will skip (as root: apt-get install chromium)"; fi

clean: ## remove what the targets made, studies included
	rm -rf .venv .scaling .pytest_cache .mypy_cache .ruff_cache .hypothesis test-artifacts
