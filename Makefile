# Everything lives in .venv, made on first use. `make restore` needs Python 3.11+, git and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt
IN ?= src/daclip/photos
OUT ?= restored
SOURCES := src tests benchmarks examples

.PHONY: restore test test-fast check format bench pins clean
.DEFAULT_GOAL := help

help:
	@echo "make restore [IN=photo or folder] [OUT=folder]   restore with the bundled model (default: the examples)"
	@echo "make test | test-fast | check | format | bench | pins"

restore: .venv/base
	$(BIN)/daclip restore "$(IN)" -o "$(OUT)/"

# coverage is of the ground, which needs no torch: it would make the graphs that torch traces half as slow again
test: .venv/dev
	$(BIN)/python -m pytest -n 2 -m torch
	$(BIN)/python -m pytest -n 2 -m "not torch" --cov --cov-report=
	$(BIN)/python -m coverage report --include='$(GROUND)' --show-missing --skip-covered --fail-under=90

test-fast: .venv/dev
	$(BIN)/python -m pytest -n 2 -m "not slow and not torch and not browser and not ray and not hub"

check: .venv/dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/pyright
	$(BIN)/lint-imports

format: .venv/dev
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench: .venv/dev
	$(BIN)/python benchmarks/restore.py
	$(BIN)/python benchmarks/unet.py
	$(BIN)/python benchmarks/degradations.py

# the tested versions, names and numbers only
pins: .venv/dev
	$(BIN)/uv pip compile -q --python-version 3.11 --no-header --no-annotate \
		--extra all --extra backbone --extra dev pyproject.toml -o constraints.txt

clean:
	rm -rf .venv build dist restored

GROUND := src/daclip/errors.py,src/daclip/vocabulary.py,src/daclip/image/*,src/daclip/degradations/*,$\
	src/daclip/diffusion.py,src/daclip/sampling.py,src/daclip/tiling.py,src/daclip/detect.py,src/daclip/models.py,src/daclip/data/*

.venv/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt uv
	touch $@

.venv/base: .venv/uv pyproject.toml constraints.txt
	$(INSTALL) -e .
	touch $@

# compiled now: tests start many programs, and where Python writes no bytecode each would compile torch anew
.venv/dev: .venv/base
	$(INSTALL) --compile-bytecode -e ".[torch,data,openvino,captions,backbone,heif,raw,plots,serve,ui,ray,dev]"
	touch $@
