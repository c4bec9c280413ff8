# `make help` lists the targets. Everything runs in .venv, which the first target makes.
PROFILE  ?= auto
DATA     ?= auto
DATA_DIR ?= $(or $(VITLAB_DATA_DIR),data)
SEEDS    ?=
BUDGET   ?=
JOBS     ?=
PUBLISH  ?=
ONLY     ?=
PYTHON   ?= python3
PORT     ?= 5000

BIN   := .venv/bin
RUN   := $(BIN)/python runner.py
FLAGS := --profile $(PROFILE) --data $(DATA) --data-dir $(DATA_DIR) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(BUDGET),--budget $(BUDGET)) $(if $(JOBS),--jobs $(JOBS))

.DEFAULT_GOAL := help
.PHONY: help setup reproduce-all claims verify test test-slow test-all bench bench-growth bench-scaling shakeout gpu-check bad-input chaos lint report notebook ui data clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: PROFILE=auto|quick|ledger|overnight|full  DATA=auto|cifar10|cifar100|digits|PATH  DATA_DIR=data  SEEDS=0,1,2  BUDGET=90m  JOBS=2  ONLY=claim,claim"
	@echo "  Reports and measurements go to reports/. With PUBLISH=1 report, bench and bench-growth write results/, benchmarks/ and README.md, chaos README.md."

setup: .venv/installed ## make .venv and install exact versions into it

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vitlab needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

reproduce-all: setup ## run the whole ladder, teachers first, and compile the report
	$(RUN) experiments $(FLAGS)
	$(BIN)/vitlab report $(if $(PUBLISH),--publish)

claims: setup ## train the runs that the claims need, profile ledger unless another is named, and print the verdicts
	$(BIN)/vitlab claims --run $(FLAGS) $(if $(ONLY),--only $(ONLY))

verify: setup ## check that every published number follows from the published records and measurements
	$(BIN)/vitlab verify
	$(BIN)/python -m benchmarks.verify

PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test: setup ## run the tests that a developer needs: at most 3 minutes on two idle cores
	$(PYTEST) -m 'not slow'

test-slow: setup ## run the others: kills, outages, bad input, servers, whole ladders, simulations
	$(PYTEST) -m slow

test-all: test test-slow ## run every test

bench: setup ## compare with plain PyTorch, timm and Lightning at the sizes of full and overnight: at most 12 minutes on two idle cores
	$(BIN)/python -m benchmarks.bench --data $(DATA) --data-dir $(DATA_DIR) $(if $(PUBLISH),--publish)

bench-growth: setup ## time against tokens, batch, depth and number of runs: at most 6 minutes on two idle cores
	$(BIN)/python -m benchmarks.growth $(if $(PUBLISH),--publish)

bench-scaling: setup ## time one run on several processes beside one: at most 8 minutes on two idle cores
	$(BIN)/python -m benchmarks.scaling $(if $(PUBLISH),--publish)

shakeout: setup ## train the first epochs of every experiment: does it run, how fast, how long will it take; profile full unless another is named
	$(BIN)/python -m benchmarks.shakeout --profile $(PROFILE:auto=full) --data $(DATA) --data-dir $(DATA_DIR) $(if $(ONLY),--only $(ONLY))

gpu-check: setup ## the first five minutes on a GPU: what works, which kernels are chosen, where a step's time goes
	$(BIN)/python -m benchmarks.gpu_check

bad-input: setup ## run the corpus of bad input alone; its last line counts the cases
	$(BIN)/python -m pytest tests/robustness/test_bad_input.py

chaos: setup ## kill small runs at every awkward moment and compare what they come to: at most 10 minutes
	$(BIN)/python -m tests.robustness.chaos --kills 60 $(if $(PUBLISH),--record)

lint: setup ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

report: setup ## compile reports/ from the finished runs
	$(BIN)/vitlab report $(if $(PUBLISH),--publish)

notebook: setup ## make notebooks/vitlab.ipynb from the script beside it
	$(BIN)/python notebooks/make.py

ui: setup ## compare the runs in MLflow's UI; prints the addresses of its tables first
	@$(BIN)/vitlab ui --port $(PORT)
	MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE=false \
	$(BIN)/mlflow server --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$${VITLAB_ROOT:-$(CURDIR)}/mlflow.db}" --workers 1 \
	  --host 127.0.0.1 --port $(PORT) --allowed-hosts 127.0.0.1:$(PORT),localhost:$(PORT)

data: setup ## make CIFAR-10 available under DATA_DIR and check it
	$(BIN)/vitlab data --data-dir $(DATA_DIR)

clean: ## remove what can be made again; runs, mlflow.db and data stay
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
