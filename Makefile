# Every target makes its own environment in .venv first; nothing outside this folder is changed.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

unexport PYTHONPATH PYTHONHOME
# Hundreds of processes import the same modules: what was compiled once is kept, in __pycache__.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install quickstart quickstart-video test test-pipelines test-processes test-long test-gpu oracle check types laws format coverage pipelines-table golden bench race bench-faster bench-gpu bench-recipes bench-algorithms bench-evidence bench-eval docs clean distclean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Create .venv and install visalign in it, in editable form

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "visalign needs Python 3.10 or newer, and none of python3, python3.10 ... python3.13" \
		"is. Install one, or name it: make PYTHON=/path/to/python3 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "visalign needs Python 3.10 or newer;" \
		"$(PYTHON) is `$(PYTHON) --version 2>&1`. Name another: make PYTHON=/path/to/python3 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make environments: venv or ensurepip" \
		"is missing. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "Creating $(VENV) with `$(PYTHON) --version`"; \
		$(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing visalign and what it needs into $(VENV): once, a few minutes, about 6 GB with the CUDA libraries of PyTorch"
	@$(BIN)/python -m pip install --quiet --progress-bar off --editable '.[dev]'
	@touch $@

quickstart: $(STAMP) ## Align the tiny FLUX pipeline on the CPU and write runs/quickstart
	$(BIN)/visalign train quickstart

quickstart-video: $(STAMP) ## Align the tiny Wan pipeline on the CPU, from text, then from a first frame
	$(BIN)/visalign train quickstart_video
	$(BIN)/visalign train quickstart_image_to_video

test: $(STAMP) ## Run the test-suite on the CPU, but for the two parts below
	@# Three on two cores: some tests wait for other processes and for the disk.
	$(PYTEST) -n 3 --dist loadgroup -m 'not multi' --ignore tests/pipelines

test-pipelines: $(STAMP) ## Run the checks of every pipeline we know, and a step of every recipe on the tiny twin of its pipeline
	$(PYTEST) -n 2 --dist loadgroup tests/pipelines

test-processes: $(STAMP) ## Run the tests of runs on several processes: spread over them, killed, stuck, resumed
	@# Of the files that have such tests: importing all others takes longer than many a test.
	$(PYTEST) -n 2 --dist loadgroup --no-loadscope-reorder -m multi `grep -rl --include='test_*.py' 'mark\.multi' tests`

test-long: $(STAMP) ## Run the minutes-long forms of tests that the suite has in short (10,000 requests with faults, whole golden curves)
	$(PYTEST) -m long

test-gpu: $(STAMP) ## Run the tests that need a CUDA device, kernels compiled
	TRITON_INTERPRET=0 $(PYTEST) -m gpu

oracle: $(STAMP) ## Compare rewards with hpsv2 and image-reward, in .oracle (6 GB, Python 3.11), adapters with ComfyUI and kohya's tools, and verdicts and numbers with the code of GenEval, GenEval 2, DPG-Bench, VBench and the content-debiased FVD
	$(PYTEST) -m oracle -s -o faulthandler_timeout=0 tests/oracle

check: $(STAMP) ## Format, lint, types, rules of the code and laws, side by side on two cores: under two minutes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(MAKE) --no-print-directory --jobs 2 --output-sync types laws

types: $(STAMP) ## Check types, strictly
	$(BIN)/basedpyright --level error

laws: $(STAMP) ## Test the rules of the code, and the laws that every member of a folder keeps
	$(PYTEST) -q tests/test_architecture.py tests/laws -m 'not slow and not multi and not gpu'

format: $(STAMP) ## Format the code and mend what the linter can mend by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

coverage: $(STAMP) ## Run the test-suite and report the lines it does not reach
	$(PYTEST) -n 2 --dist loadgroup --cov --cov-report=term-missing

pipelines-table: $(STAMP) ## Make the checks of docs/pipelines.md on every pipeline we know, and write it (minutes)
	WRITE_TABLE=1 $(PYTEST) -n 2 --dist loadgroup tests/pipelines

golden: $(STAMP) ## Write the golden curves anew; look at the difference before you commit it
	REWRITE_GOLDEN=1 $(PYTEST) tests/golden

bench: $(STAMP) ## Measure what the machinery costs (minutes)
	$(BIN)/python -m examples.benchmarks.run

bench-faster: $(STAMP) ## Measure scouts on three seeds, feature caches, and compiled blocks in the doctor (an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.benchmarks.caches
	OMP_NUM_THREADS=1 $(BIN)/visalign doctor quickstart_dancegrpo policy.compile=blocks
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.benchmarks.scouts

race: $(STAMP) ## Race other trainers on one task, in turn (an hour): make race FLOW_FACTORY=CHECKOUT, or ours alone
	$(BIN)/python -m examples.benchmarks.race.run $(if $(FLOW_FACTORY),--flow-factory $(FLOW_FACTORY)) --table docs/faster.md

bench-gpu: $(STAMP) ## Measure a GPU in ten minutes: kernels, and steps of full-size models with random weights; call again for the rest
	$(BIN)/python -m examples.benchmarks.gpu_hour

# What bench-algorithms compares: those that learn from files by their steps, those that sample by their time.
QUICK := configs/quickstart/quickstart
OFFLINE := $(patsubst %,$(QUICK)_%.yaml,dpo ipo kto seppo sft)
OTHER_TASKS := $(patsubst %,$(QUICK)_%.yaml,colour video image_to_video video_dpo video_seppo)
ONLINE := $(filter-out $(OFFLINE) $(OTHER_TASKS),$(wildcard $(QUICK).yaml $(QUICK)_*.yaml))
EACH := --parallel 2 --threads 1 --folder runs/algorithms --table docs/algorithms_bench.md

bench-recipes: $(STAMP) ## Run the quickstart's task by four methods on three seeds (half an hour)
	$(BIN)/python -m examples.benchmarks.recipes $(QUICK).yaml $(QUICK)_dancegrpo.yaml \
		$(QUICK)_nft.yaml $(QUICK)_awm.yaml --parallel 2 --threads 1

bench-algorithms: $(STAMP) ## Run every algorithm on the tiny FLUX on three seeds, and write docs/algorithms_bench.md (hours; resumable)
	$(BIN)/python -m examples.benchmarks.recipes $(OFFLINE) --steps 100 --section offline $(EACH)
	$(BIN)/python -m examples.benchmarks.recipes $(ONLINE) --seconds 120 --section online $(EACH)

bench-evidence: $(STAMP) ## Run the tasks on which methods show what they claim, five seeds each, and write docs/evidence.md (hours; resumable)
	$(BIN)/python -m examples.benchmarks.evidence.run --parallel 2

bench-eval: $(STAMP) ## Compare the tiny FLUX with four recipes and the best of four by all that runs offline, and write a part of docs/evaluation.md (hours; resumable)
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.benchmarks.generators --table docs/evaluation.md

docs: $(STAMP) ## Build the site of the documentation into site/; links that lead nowhere are errors
	@$(BIN)/python -c 'import material' 2>/dev/null || $(BIN)/python -m pip install --quiet --progress-bar off --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --clean

clean: ## Remove caches and build products; runs and .venv stay
	rm -rf .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* dist build site
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## Remove the environments too
	rm -rf $(VENV) .oracle .oracle-comfyui .oracle-kohya .oracle-geneval .oracle-vbench .oracle-geneval2 .oracle-ella .oracle-cdfvd
