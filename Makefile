# Both targets work on a fresh machine: they make the virtual environment themselves.
VENV   := .venv
PYTHON ?= python3
BIN    := $(VENV)/bin

.PHONY: demo test lint system clean

demo: $(VENV)/.demo
	$(BIN)/rws demo --out demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml edge/live/_kernel.c
	$(BIN)/pip install --quiet -e '.[demo]'
	@touch $@

# torch comes first and alone: an unpinned request would take a CUDA build of several GB.
$(VENV)/.test: $(VENV)/bin/python pyproject.toml constraints.txt edge/live/_kernel.c
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.demo

# Optional, on Debian, as root: what the tests of the page, the window and RTSP need beside Python.
system:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium xvfb python3-gi \
	    gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly \
	    >/dev/null

clean:
	rm -rf $(VENV) demo build *.egg-info edge/live/*.so
