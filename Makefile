# make demo: benchmark sweep, plots and a short training run.  make test: the whole test suite.
# Both create $(VENV) on first use. With SYSTEM_PACKAGES=1 the environment also sees the packages of $(PYTHON),
# for machines that already carry a CUDA build of torch or have no network.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
VENV_FLAGS := $(if $(SYSTEM_PACKAGES),--system-site-packages)
RUN := $(VENV)/bin/python

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(RUN) -m bench demo

test: $(VENV)/.installed
	$(RUN) -m pytest -q -n $(JOBS)
	TRITON_INTERPRET=1 $(RUN) -m pytest -q -n $(JOBS) tests/ops tests/optim/test_fused.py

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[dev,train]"
	touch $@

clean:
	rm -rf $(VENV)
