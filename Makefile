# make setup   .venv with everything in it       make test   the tests
# make demo    train, evaluate, show pictures    make lint   style, types
# make docs    the site, in build/site           make test-fast   what most changes concern
# make notebook   from images to ONNX, in build
#
# make setup PYTHON=python3.12                   another Python
# make setup TORCH="torch==X torchvision==Y"     other builds of PyTorch (any words pip takes)

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch torchvision
JOBS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=
FAST_TESTS ?= tests/ops tests/losses tests/config tests/test_architecture.py tests/test_files.py

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.d2ext-setup

.PHONY: help setup test test-fast demo docs notebook lint format clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/s/^# \{0,1\}//p;/^$$/q' Makefile

setup: $(STAMP)

# The stamp is as new as the last complete setup; it is out of date when a requirement changed.
$(STAMP): setup.py requirements.txt tools/install_detectron2.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))' || { \
	  echo "d2ext needs Python 3.9 or newer, run 'make setup PYTHON=<path to one>'."; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) cannot make a virtual environment; install its venv package" \
	    "(python3-venv on Debian and Ubuntu) and run this again."; exit 1; }
	@echo "[1/4] PyTorch: $(TORCH)"
	@$(PIP) $(TORCH:%='%')
	@echo "[2/4] other requirements"
	@$(PIP) -r requirements.txt
	@echo "[3/4] Detectron2"
	@$(PY) tools/install_detectron2.py
	@echo "[4/4] d2ext"
	@$(PIP) --no-build-isolation -e '.[dev]'
	@$(PY) -m d2ext --version
	@touch $@

# Two processes with one thread each: more threads than cores makes small models slower, not faster.
test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

# Mathematics, losses, config, the models without long runs, and what holds the whole together.
test-fast: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) --dist worksteal \
	  -m "not slow and not dist and not export" $(FAST_TESTS) $(PYTEST_ARGS)

demo: setup
	$(PY) tools/demo.py $(DEMO_ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m check_jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(VENV)/bin/zizmor --offline --no-progress --quiet .github

docs: setup
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

notebook: setup
	@mkdir -p build
	$(PY) -m jupytext --quiet --to ipynb --output build/own_data.ipynb docs/examples/notebook/own_data.py

format: setup
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find d2ext tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
