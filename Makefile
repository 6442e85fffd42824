VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
# The stamp carries the Python version, so that another PYTHON gets a fresh environment.
SHOW_VERSION := -c 'import sys; print("%d.%d" % sys.version_info[:2])'
VERSION := $(shell $(PYTHON) $(SHOW_VERSION))
STAMP := $(VENV)/installed-$(VERSION)
# Two files of tests at a time, one thread each: most tensors here are too small for two threads, and what a file's
# tests share, compiled steps and oracles, is made once.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: help setup train test lint parity bench gpu docs notebook

help:  ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(STAMP)  ## Make .venv and install the package with its application and tests

$(STAMP): pyproject.toml constraints.txt | $(VENV)/made-$(VERSION)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[app,test]'
	@touch $@

$(VENV)/made-$(VERSION):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	[ "$$($(BIN)/python $(SHOW_VERSION) 2>/dev/null)" = $(VERSION) ] || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	@touch $@

train: $(STAMP)  ## Train and evaluate AlexNet on the embedded handwritten digits
	$(BIN)/alexnet train

test: $(STAMP)  ## Run the tests, those of plain functions with every shape annotation checked
	$(PYTEST) -m 'not slow and not compiled and not errors' --jaxtyping-packages=alexnet_func,beartype.beartype
	$(PYTEST) -m 'not slow and (compiled or errors)'

lint: $(STAMP)  ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

parity: $(STAMP)  ## Compare with modules, NumPy and JAX: the quick rows
	$(BIN)/python -m parity --quick

bench: $(STAMP)  ## Measure speed and memory, beside other libraries (about an hour)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[app,test,peers]'
	$(BIN)/python -W ignore -m benchmarks --out benchmarks/results

gpu:  ## The first half hour on a machine with a GPU: tests, parity, speed, accuracy
	$(PYTHON) -m benchmarks.gpu

docs: $(STAMP)  ## Build the pages into site/, which a browser opens at site/index.html
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

notebook: $(STAMP)  ## Install Jupyter and open AlexNet.ipynb
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[notebook]'
	$(BIN)/jupyter notebook AlexNet.ipynb
