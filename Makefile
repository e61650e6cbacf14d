# make demo [FAST=1] [SEEDS=3]   the whole road on embedded data; ends with the leaderboard and its page
# make test                      the test suite;  make test-slow: the slow tests too;  make lint: ruff
PYTHON ?= $(shell command -v python3.11 || command -v python3)
SEEDS ?= 1
BIN := .venv/bin
WORKERS := -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test test-slow lint install clean

install: .venv/installed

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
	  { echo "beit_mm needs Python 3.11: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: .venv/installed
	$(BIN)/python tools/benchmark.py configs/suites/miniature.py --seeds $(SEEDS) $(if $(FAST),--fast)

test: .venv/installed
	$(BIN)/python -m pytest $(WORKERS)

test-slow: .venv/installed
	$(BIN)/python -m pytest $(WORKERS) -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv work_dirs build *.egg-info
