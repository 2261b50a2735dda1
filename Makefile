# `make demo` and `make test` set themselves up: the first call makes a virtual environment in .venv and installs into it
# (a few minutes, most of it torch), later calls only look whether pyproject.toml or constraints.txt has changed.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
# Another interpreter: make PYTHON=/path/to/python3.12 test
PYTHON ?=
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3 python3.11 python3.12 /usr/bin/python3)
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --retries 5 --constraint constraints.txt
QT_LIBRARIES := libgl1 libegl1 libxkbcommon0 libfontconfig1 libfreetype6 libdbus-1-3 libglib2.0-0 libx11-6

# Qt without a screen, also where there is one: tests must not open windows on somebody's desktop.
export QT_QPA_PLATFORM := offscreen
export PYTHONNOUSERSITE := 1

.PHONY: help demo test check accuracy install system clean

help:
	@echo "make demo      segment both hippocampi of the MNI152 template; pictures, tables and a scene in demo-output/"
	@echo "make test      check the code and run every test"
	@echo "make accuracy  the long measurements on the data folder (MLI_DATA)"
	@echo "make clean     remove the virtual environment and what the other commands wrote"

demo: install
	@$(BIN)/python demo/run_demo.py --output demo-output

test: install check system
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

check: install
	@$(BIN)/ruff check .
	@# Text files without a named encoding: Qt and VTK change the locale of their process.
	@$(BIN)/ruff check --quiet --preview --select PLW1514 .
	@$(BIN)/ruff format --check --quiet . || { echo "Run: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/mypy

accuracy: install system
	@$(BIN)/python -m pytest -m "slow or not slow" -s Testing/accuracy

# The mark "installing" outlives an installation that was cut short: what it left is not to be trusted.
install:
	@trap 'exit 130' INT TERM; \
	wanted="$$(cat pyproject.toml constraints.txt | cksum) $(CURDIR)"; \
	if [ -e $(VENV)/installed ] && [ "$$(cat $(VENV)/installed)" = "$$wanted" ] && $(BIN)/python -c "" 2>/dev/null; \
	then exit 0; fi; \
	if [ -e $(VENV)/installing ] || ! $(BIN)/python -c "import pip" 2>/dev/null; then rm -rf $(VENV); fi; \
	if [ ! -d $(VENV) ]; then \
	  python=""; \
	  for candidate in $(CANDIDATES); do \
	    if "$$candidate" -c "$(SUITABLE)" 2>/dev/null; then python="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "No Python 3.11 or 3.12 with its venv module was found (tried: $(CANDIDATES))." \
	      "Install one, on Debian or Ubuntu with: apt-get install python3 python3-venv," \
	      "or name it: make PYTHON=/path/to/python3.12 $(or $(firstword $(MAKECMDGOALS)),test)" >&2; exit 1; \
	  fi; \
	  echo "Setting up $(VENV) with $$("$$python" --version)."; \
	  mkdir $(VENV) && touch $(VENV)/installing && "$$python" -m venv $(VENV) || exit 1; \
	fi; \
	touch $(VENV)/installing; rm -f $(VENV)/installed; \
	echo "Installing; the first time this takes a few minutes."; \
	for try in 1 2 3; do \
	  if $(INSTALL) --quiet --editable ".[dev]"; then \
	    rm -f $(VENV)/installing; echo "$$wanted" > $(VENV)/installed; exit 0; \
	  fi; \
	  echo "The installation failed (attempt $$try of 3)." >&2; sleep $$((try * 5)); \
	done; \
	echo "The packages could not be installed: see the lines above. Check the network and the free disk space," \
	  "then run the same command again." >&2; exit 1

system: install
	@if ! message=$$($(BIN)/python -c "from PySide6 import QtWidgets, QtUiTools; QtWidgets.QApplication([])" 2>&1); then \
	  echo "$$message" | tail -n 1 >&2; \
	  echo "The widgets' tests need system libraries that this machine lacks;" \
	    "on Debian or Ubuntu: apt-get install $(QT_LIBRARIES)" >&2; exit 1; \
	fi

clean:
	rm -rf $(VENV) demo-output Testing/Output build .pytest_cache .mypy_cache .ruff_cache
