# `make demo`, `make test` and `make serve-demo` do all of their own set-up: a virtual environment in .venv with the
# pinned set and, to serve, one with vLLM in .serving.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SERVING := .serving
SERVED := serve-demo-output
# Of the teacher's server: make serve-demo PORT=8000. Default: any free one.
PORT ?=
# Two test processes of one thread each: on two cores faster than one process of two. Grouped tests share fixtures.
TEST_PROCESSES ?= 2

.PHONY: demo serve-demo test lint types tests format clean

demo: $(READY)
	$(BIN)/iiad demo --output-dir demo-output

# The models of the recipes demo and demo-distill: vLLM has no CPU kernel for heads of width 16, as those of `iiad demo`.
serve-demo: $(SERVING)/.ready $(SERVED)/student/model.safetensors
	$(BIN)/python benchmarks/serving.py $(SERVING)/bin/python $(SERVED)/teacher $(SERVED)/student $(PORT:%=--port %) \
		--eager

$(SERVING)/.ready: serving/requirements.txt
	test -x $(SERVING)/bin/python || $(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/python -m pip install --quiet --no-deps --requirement serving/requirements.txt
	@touch $@

$(SERVED)/teacher/model.safetensors: | $(READY)
	$(BIN)/iiad train demo --output-dir $(@D) $(if $(wildcard $(@D)),--resume)

$(SERVED)/plan.json: $(SERVED)/teacher/model.safetensors
	$(BIN)/iiad profile $(SERVED)/teacher --data stdlib --max-tokens 16384 --output $(SERVED)/profile.json --overwrite
	$(BIN)/iiad plan $(SERVED)/profile.json --overhead-cut 0.55 --output $@ --overwrite

$(SERVED)/student/model.safetensors: $(SERVED)/plan.json
	$(BIN)/iiad distill $(SERVED)/teacher $< --recipe demo-distill --output-dir $(@D) $(if $(wildcard $(@D)),--resume)

test: lint types tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

tests: $(READY)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest -q -n $(TEST_PROCESSES) --dist loadgroup

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "iiad needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build *.egg-info
