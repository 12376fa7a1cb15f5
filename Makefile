# Each goal does all of its own set-up: on a fresh machine with Python 3.11 or newer, `make demo` is all it takes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Else a Python that was built for an older macOS takes macOS 26 for 16, and pip packages without the newest GPU kernels.
export SYSTEM_VERSION_COMPAT := 0

.PHONY: demo test test-long lint bench soak schema clean

demo: $(VENV)/.installed
	$(BIN)/mlxk2 run demo "What is the capital of France?"
	@echo
	@echo 'Go on: $(BIN)/mlxk2 run demo (a chat), $(BIN)/mlxk2 serve --model demo (a server), $(BIN)/mlxk2 --help'

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" $(ARGS)

test-long: $(VENV)/.installed-dev
	MLXK2_FUZZ=4 $(BIN)/python -m pytest -n auto --dist worksteal -m "slow or sampled" $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/generate_schema.py --check
	$(BIN)/python tools/command_pages.py --check
	$(BIN)/python benchmarks/report.py --check
	$(BIN)/python tools/measure_style.py --check

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks

soak: $(VENV)/.installed-dev
	$(BIN)/python tools/soak $(ARGS)

schema: $(VENV)/.installed-dev
	$(BIN)/python tools/generate_schema.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mlxk2 needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -c 'import platform, sys; sys.exit(sys.platform == "darwin" and (platform.machine() != "arm64" and "MLX needs a Mac with Apple silicon, and this Python is for Intel. If yours has Apple silicon, name a Python for it: make PYTHON=/opt/homebrew/bin/python3" or int(platform.mac_ver()[0].split(".")[0]) < 14 and "MLX needs macOS 14 or newer."))'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed
