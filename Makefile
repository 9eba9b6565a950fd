# vit_course: `make lab` to learn, `make test` to prove. Both set themselves up with nothing but Python 3.11 or newer.

PYTHON  ?= python3
WORKERS ?= 2
# More for JupyterLab, for example: make lab LAB=--no-browser. It refuses to run as root, as in a container, unless told.
LAB     ?=
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
VENV    := .venv
BIN     := $(VENV)/bin
# A stamp is touched last, so that an install that was cut short is done again.
INSTALLED := $(VENV)/.installed
BENCHABLE := $(VENV)/.installed-bench

.PHONY: help lab reset test quick soak export execute pages format lint types bench results clean

help:
	@echo "make lab               open JupyterLab on your own copies of the lessons, in work/"
	@echo "make reset LESSON=02   put a fresh copy of a lesson beside yours"
	@echo "make test              prove everything: package, notebooks, tools"
	@echo "make quick             the package's tests in minutes: no notebook, no browser, nothing marked slow"
	@echo "make soak              the long forms of some tests: thousands of files, many minutes"
	@echo "make bench             measure speed and memory beside the published peers"
	@echo "make results           compute the long accuracy tables again"
	@echo "make clean             remove .venv and what was built; work/ and data/ stay"
	@echo "for authors:           make export, make execute [LESSON=02], make pages [LESSON=02],"
	@echo "                       make format, make lint, make types"

$(INSTALLED): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "There is no $(PYTHON) here; install Python 3.11 or newer, or name yours: make PYTHON=/path/to/python"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 11) or sys.exit("vit_course needs Python 3.11 or newer; %s is %d.%d. Name a newer one: make PYTHON=python3.12" % (sys.argv[1], *sys.version_info[:2]))' "$(PYTHON)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv $(VENV)
	@echo "Installing into $(VENV): some minutes, most of them PyTorch."
	$(BIN)/python -m pip install -c constraints.txt -e .[dev]
	@touch $@

$(BENCHABLE): $(INSTALLED)
	$(BIN)/python -m pip install -c constraints.txt -e .[dev,bench]
	@touch $@

lab: $(INSTALLED)
	@$(BIN)/python tools/workspace.py
	$(BIN)/python -m jupyterlab --ip=localhost --ServerApp.root_dir=work --LabApp.default_url=/lab/tree/00_start_here.ipynb $(AS_ROOT) $(LAB)

reset: $(INSTALLED)
	@$(BIN)/python tools/workspace.py --fresh "$(LESSON)"

# Two trainings of two threads each on two cores run many times slower than one alone: one thread per worker. loadfile keeps
# the cells of a notebook together; the order is the one of tests/conftest.py, the longest first.
test quick soak execute: export OMP_NUM_THREADS = 1
test quick soak execute: export MKL_NUM_THREADS = 1
test quick soak execute: export HF_HUB_OFFLINE = 1

test: $(INSTALLED)
	$(BIN)/python tools/export.py --check
	$(BIN)/python -m pytest tests notebooks -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10
	@echo "All is well: the lessons run as they are printed, and the package is what they build."

quick: $(INSTALLED)
	$(BIN)/python tools/export.py --check
	$(BIN)/python -m pytest tests -m "not slow and not soak" -p no:nbval --override-ini addopts= -n $(WORKERS) --dist loadfile --durations=10
	@echo "Well so far. make test adds the notebooks, the browser and what is marked slow."

soak: $(INSTALLED)
	$(BIN)/python -m pytest tests -m soak -p no:nbval --override-ini addopts= --durations=10

export: $(INSTALLED)
	$(BIN)/python tools/export.py

execute: $(INSTALLED)
	$(BIN)/python tools/execute.py $(LESSON)

pages: $(INSTALLED)
	$(BIN)/python tools/page.py $(LESSON)
	$(BIN)/python tools/glossary.py

format: $(INSTALLED)
	$(BIN)/python -m ruff check --select I --fix --quiet .
	$(BIN)/python -m ruff format .

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m codespell_lib
	$(BIN)/python tools/notebook_lint.py

types: $(INSTALLED)
	$(BIN)/python -m mypy

bench: $(BENCHABLE)
	$(BIN)/python benchmarks/bench.py

results: $(BENCHABLE)
	$(BIN)/python benchmarks/results.py
	$(BIN)/python benchmarks/zoo.py
	$(BIN)/python benchmarks/distillation.py
	$(BIN)/python benchmarks/max_vit.py
	$(BIN)/python benchmarks/parity.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/es_vit.py
	$(BIN)/python benchmarks/masked_patches.py
	$(BIN)/python benchmarks/capstone.py
	$(BIN)/python benchmarks/for_real.py
	$(BIN)/python benchmarks/deeper.py

clean:
	rm -rf $(VENV) build dist vit_course.egg-info .pytest_cache .ruff_cache .mypy_cache
	find vit_course tests tools benchmarks notebooks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
