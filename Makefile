# demo   set up if needed, erase a concept and a style from the bundled model, write out/demo/report.html
# check  what to run before a commit: format, lint, types, import contracts, the fast tests
# test   what CI proves: the same with the slow tests, and the built wheel in a bare environment
# bench  draw all tables of experiments/ anew and compare them with results/ (a day; stop it and start it at will)
# bench-quick   a few erasers on a few pictures, to see that the harness works

PYTHON ?= $(shell sh scripts/find_python.sh)
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
# A file's tests stay in one process, which has what the file made once. One process: PYTEST_ARGS=-n0.
PYTEST := $(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile
PYTEST_ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo check test docs bench bench-quick fuzz static smoke format install clean

help:
	@sed -n 's/^# //p' Makefile | head -5

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 found; install one, or say which: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV)

# A stamp is older than pyproject.toml or constraints.txt exactly when something must be installed anew.
$(BASE): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $(BASE) $@

install: $(DEV)

demo: $(BASE)
	$(BIN)/spm demo --out out/demo

static: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

check: static
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test: static
	$(PYTEST) --durations=15 $(PYTEST_ARGS)
	$(MAKE) --no-print-directory smoke

smoke: $(DEV)
	PYTHON=$(BIN)/python sh scripts/smoke_wheel.sh

docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Hours; the committed tables were drawn with one core for each process.
WORKERS ?= 2
bench: $(BASE)
	$(BIN)/python benchmarks/bench.py --workers $(WORKERS) --results out/bench/results
	$(BIN)/python benchmarks/bench.py --compare out/bench/results
	$(BIN)/spm report out/bench/main --out out/bench/report.html

bench-quick: $(BASE)
	$(BIN)/python benchmarks/bench.py --tables quick --results out/bench/quick-results
	$(BIN)/spm report out/bench/quick --out out/bench/quick.html

# Long: the readers of policies and membranes, FUZZ_SECONDS each; findings are written to out/fuzz/.
FUZZ_SECONDS ?= 600
fuzz: $(DEV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[fuzz]"
	$(BIN)/python scripts/fuzz.py policies $(FUZZ_SECONDS)
	$(BIN)/python scripts/fuzz.py membranes $(FUZZ_SECONDS)

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf dist build out .pytest_cache .ruff_cache .hypothesis .import_linter_cache
