# make demo: benchmark sweep, plots and a short training run.  make test: the whole test suite.
# Both create $(VENV) on first use. With SYSTEM_PACKAGES=1 the environment also sees the packages of $(PYTHON),
# for machines that already carry a CUDA build of torch or have no network.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
VENV_FLAGS := $(if $(SYSTEM_PACKAGES),--system-site-packages)
RUN := $(VENV)/bin/python

TRITON ?= 3.6.0
OTHER_TRITON = $(VENV)/triton-$(TRITON)

FUZZ_SECONDS ?= 600
SOAK_SECONDS ?= 3600

.PHONY: demo test test-triton test-without-triton fuzz soak docs lint scale clean

demo: $(VENV)/.installed
	$(RUN) -m bench demo

test: $(VENV)/.installed
	$(RUN) -m pytest -q -n $(JOBS)
	TRITON_INTERPRET=1 $(RUN) -m pytest -q -n $(JOBS) tests/ops tests/optim/test_fused.py

# The compile gate, and Triton's interpreter on the ops with the most kernels, with another version of Triton.
test-triton: $(OTHER_TRITON)/.installed
	PYTHONPATH=$(OTHER_TRITON) $(RUN) -m pytest -q -n $(JOBS) tests/compile_gate
	PYTHONPATH=$(OTHER_TRITON) TRITON_INTERPRET=1 $(RUN) -m pytest -q -n $(JOBS) tests/ops/test_linear.py tests/ops/test_topk.py

# Import and CPU kernels where there is no Triton.
test-without-triton: $(VENV)/.installed
	PYTHONPATH=tests/without_triton $(RUN) -m pytest -q -n $(JOBS) \
	    tests/ops/test_linear_cpu.py tests/ops/test_topk.py tests/models/test_linear.py tests/test_readme.py

# Mutated inputs for FUZZ_SECONDS seconds a target; a failure says how to repeat it. FUZZ_SEED=N begins elsewhere.
fuzz: $(VENV)/.installed
	$(RUN) -m tests.fuzz --count 1000000000 --seconds $(FUZZ_SECONDS) --seed $(or $(FUZZ_SEED),0)

# Training, killing, resuming, evaluating and loading for SOAK_SECONDS seconds: memory and handles must stay flat.
soak: $(VENV)/.installed
	$(RUN) -m tests.soak --seconds $(SOAK_SECONDS)

# The documentation as a static site in build/site.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

# 670,091 labels under a hard limit of 4 GB, beside the others (PEERS=PYTHON is one with omikuji and PECOS); then two and three
# hosts, as network namespaces: the same line on each, a cut link, a dead host, another number of hosts (-rs: why not, if not).
DATA ?= ../shared/data/PyPI-KnownItem
scale: $(VENV)/.installed
	$(RUN) -m sparse_xmc warmup --no-progress
	$(RUN) -m bench.studies.known_item --data $(DATA) $(if $(PEERS),--peers $(PEERS)) --out reports/scale
	$(RUN) -m bench.known_item_report reports/scale
	$(RUN) -m pytest -q -rs tests/distributed/test_hosts.py

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[dev,train]"
	touch $@

$(OTHER_TRITON)/.installed: $(VENV)/.installed
	$(RUN) -m pip install --disable-pip-version-check -q --no-deps --target $(OTHER_TRITON) triton==$(TRITON)
	touch $@

clean:
	rm -rf $(VENV)
