# Every target does its own set-up; a second call starts in seconds.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= lltoolkit-demo
READY  := $(VENV)/.ready

.PHONY: venv demo demo-quick test lint format lab notebooks clean

demo: $(READY)  ## train with and without shortcuts, compute both surfaces, draw them
	$(BIN)/lltoolkit demo --out $(OUT)

demo-quick: $(READY)  ## the same in miniature
	$(BIN)/lltoolkit demo --quick --out $(OUT)-quick

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("lltoolkit needs Python >= 3.11, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_floors.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(READY)  ## run every notebook from top to bottom, outputs thrown away
	$(BIN)/python -m tests.run_notebooks

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=notebooks

clean:
	rm -rf $(VENV) lltoolkit-demo lltoolkit-demo-quick
