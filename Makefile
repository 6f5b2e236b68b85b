# Every target does its own set-up; a second call starts in seconds.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BENCH  := .venv-bench
OUT    ?= lltoolkit-demo
READY  := $(VENV)/.ready

.PHONY: venv demo demo-quick test lint format lab notebooks bench bench-quick bench-curvature gallery clean

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

bench: $(BENCH)/.ready  ## time lltoolkit beside the other tools; see benchmarks/README.md
	$(BENCH)/bin/python -m benchmarks cells --out benchmarks/results.json

bench-quick: $(BENCH)/.ready  ## the same in 2 minutes
	$(BENCH)/bin/python -m benchmarks cells --quick

N_EXAMPLES ?= 500
bench-curvature: $(READY)  ## the work of a curvature map beside eigsh's: hours with 500 examples; goes on where it was stopped
	$(BIN)/python -m benchmarks curvature --n-examples $(N_EXAMPLES) --keep benchmarks/.curvature-$(N_EXAMPLES).curvature.nc --out benchmarks/curvature-$(N_EXAMPLES).json

# The other tools' pins must not touch ours, so they have an environment of their own. topopy, which landscaper imports,
# asks for numpy < 2 and works with 2: without dependencies. Where landscaper can't be installed, it is left out.
$(BENCH)/.ready: pyproject.toml benchmarks/constraints-bench.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -c benchmarks/constraints-bench.txt -e ".[bench]"
	-$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c benchmarks/constraints-bench.txt landscaper topopy nglpy
	@touch $@

gallery: $(READY)  ## draw docs/gallery.md from the shipped results
	$(BIN)/python docs/gallery.py

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=notebooks

clean:
	rm -rf $(VENV) $(BENCH) lltoolkit-demo lltoolkit-demo-quick
