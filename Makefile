# Needs make and Python 3.11 or newer, nothing else. `make help` lists the commands.
#   make train ARGS="loss.beta=0.2"     arguments for the command behind a target
#   make test PYTHON=python3.12         another Python

PYTHON = python3
VENV = .venv
LOWEST = .venv-lowest
ARGS =
STAND_IN =
BIN = $(VENV)/bin
# With the constraints beside it, torch is asked for by its exact version from the start: a bare
# torch would fetch the newest one first, gigabytes of it.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# One thread a worker: tests work on small tensors, and the workers share the cores.
TEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help train test test-slow test-lowest check format clean

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

train: $(VENV)/.installed  ## install, then train: the embedded demo, or what ARGS names
	$(BIN)/python -m minimind_dpo.train $(ARGS)

test: $(VENV)/.installed-dev  ## install what tests need, then run the fast ones
	$(TEST) -n auto --maxprocesses 8 --dist worksteal $(ARGS)

test-slow: $(VENV)/.installed-dev  ## the tests that take minutes: kills, several processes, sweeps
	$(TEST) -m slow $(ARGS)

test-lowest:  ## the fast tests with the lowest versions that pyproject.toml allows; STAND_IN="torch==2.13.0" for others
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check packaging
	$(LOWEST)/bin/python tools/lowest.py $(STAND_IN) > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/constraints.txt -e '.[dev]'
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

check: $(VENV)/.installed-dev  ## linter, formatter, type checker, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## rewrite the code as the formatter wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment, caches and builds; outputs/ stays
	@for each in $(VENV) $(LOWEST); do if [ -f $$each/pyvenv.cfg ]; then rm -rf $$each; fi; done
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Made again whenever what is to be installed has changed.
$(VENV)/.installed: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	@echo "Installing minimind_dpo into $(VENV); the first time this takes minutes (torch is large)."
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	@echo "Installing minimind_dpo and its development tools into $(VENV); the first time this takes minutes (torch is large)."
	$(PIP) -e '.[dev]'
	@touch $(VENV)/.installed $@

$(VENV)/pyvenv.cfg:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON). Install Python 3.11 or newer, or name yours: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, and $(PYTHON) is `$(PYTHON) --version 2>&1`. Name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
