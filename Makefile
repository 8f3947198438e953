# All targets but `system` work on a fresh machine: they make the virtual environment themselves.
SHELL  := /bin/bash
VENV   := .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
# Without a limit on crashed workers, pytest-xdist waits for one of them forever.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

.PHONY: demo docs check test lint types lowest lock system clean

demo: $(VENV)/.demo
	@$(BIN)/rws demo --out demo

# The site, in build/site; a broken link or anchor is an error. It is built and read without a network.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What a change needs before it is committed, in under 3 minutes on two cores.
check: lint
	$(PYTEST) -m "not slow"

test: $(VENV)/.test
	$(PYTEST)

lint: $(VENV)/.test types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy and import-linter do not follow an editable installation: links show them the packages as they are installed.
types: $(VENV)/.test
	rm -rf build/lint/rws && mkdir -p build/lint/rws
	for path in rws/*.py rws/py.typed edge oracle training benchmarks; do ln -sfn ../../../$$path build/lint/rws/; done
	cd build/lint && $(abspath $(BIN))/lint-imports ../../pyproject.toml
	$(BIN)/mypy

# The tests of a device, which has no torch, with the lowest versions that pyproject.toml allows.
lowest: $(VENV)/.lowest
	$(PYTEST) tests/oracle tests/edge tests/test_cli.py

# What devices install: every package in one version, with the hashes of all its files. Takes the newest versions.
LOCK = $(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-annotate --custom-compile-command "make lock" \
    pyproject.toml --extra serve --extra sign --extra mqtt deploy/requirements.in --python-version 3.10
lock: $(VENV)/.lock
	$(LOCK) --universal --no-emit-package opencv-python-headless --output-file deploy/requirements.txt
	$(LOCK) --universal --no-emit-package opencv-python --output-file deploy/requirements-headless.txt
	$(LOCK) --python-platform aarch64-manylinux_2_28 --constraint deploy/constraints.jetson.txt \
	    --no-emit-package opencv-python --no-emit-package onnxruntime --output-file deploy/requirements-jetson.txt

$(VENV)/bin/python:
	@echo "Making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml edge/live/_kernel.c
	@echo "Installing ONNX Runtime, OpenCV, PyAV, NumPy and Matplotlib, no torch: 200 MB to download, 600 MB on disk"
	@set -o pipefail; $(BIN)/pip install -e '.[demo]' | sed -n \
	    -e 's/^ *\(Downloading [^-]*-[^-]*\)-.* \((.*MB)\)$$/  \1 \2/p' \
	    -e 's/^Processing .*\/\([^-]*-[^-]*\)-.*/  \1/p' \
	    -e 's/^Installing collected .*/  Unpacking all of it: up to a minute/p'
	@touch $@

$(VENV)/.docs: $(VENV)/bin/python pyproject.toml constraints.txt edge/live/_kernel.c
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

# torch comes first and alone: an unpinned request would take a CUDA build of several GB.
$(VENV)/.test: $(VENV)/bin/python pyproject.toml constraints.txt edge/live/_kernel.c
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.demo $(VENV)/.docs

$(VENV)/.lowest: $(VENV)/bin/python pyproject.toml constraints-lowest.txt edge/live/_kernel.c
	$(BIN)/pip install --quiet -c constraints-lowest.txt -e '.[serve,sign,mqtt]' pytest pytest-xdist hypothesis pyyaml ml_dtypes
	@touch $@

$(VENV)/.lock: $(VENV)/bin/python
	$(BIN)/pip install --quiet uv
	@touch $@

# Optional, on Debian, as root: what the tests of the page, the window and RTSP need in addition to Python.
system:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium mosquitto xvfb python3-gi \
	    gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly \
	    >/dev/null

clean:
	rm -rf $(VENV) demo build *.egg-info edge/live/*.so
