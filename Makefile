# Every target that needs it builds .venv itself when it is missing, or older than pyproject.toml or constraints.txt.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test nightly lint docs claims harm bench data programs clean

PYTHON ?= python3
EXTRAS ?= datasets,dev,docs,ot,postgres,ray,report,serve,text
PIP_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
DATA_PACKAGES := dataset-fashion-mnist wordnet-base

# $(call debian_install,PACKAGES): quietly, where we are root on Debian; fails otherwise.
debian_install = { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	&& export DEBIAN_FRONTEND=noninteractive \
	&& get="apt-get -qq -o DPkg::Lock::Timeout=120" \
	&& { $$get install -y --no-install-recommends $(1) >/dev/null 2>&1 \
		|| { $$get update >/dev/null 2>&1 && $$get install -y --no-install-recommends $(1) >/dev/null 2>&1; }; }; }

# $(call each,FOLDER): runs every script of a folder, one after another; fails at the end if one of them failed.
each = scripts="$$(find $(1) -name '[!_]*.py' 2>/dev/null | sort || true)"; failed=""; \
	[ -n "$$scripts" ] || echo "nothing to run in $(1)/"; \
	for script in $$scripts; do \
		echo "== $$script"; $(BIN)/python "$$script" || failed="$$failed $$script"; done; \
	[ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  PYTEST_ARGS="-k lora -x", WORKERS=4, PYTHON=python3.12, EXTRAS=dev and PIP_ARGS=... are passed on'

demo: $(STAMP) data ## train a small network, let its stream shift, keep it within limits, write the report
	@$(BIN)/homeostat demo

test: $(STAMP) data programs ## all tests and doctests but the slow ones
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --durations 10 $(PYTEST_ARGS)

nightly: $(STAMP) data programs ## the tests that take minutes: every kill, every power loss
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m nightly -n $(WORKERS) --dist worksteal --durations 0 $(PYTEST_ARGS)

lint: $(STAMP) ## ruff, formatting, types, imports that point down only
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

docs: $(STAMP) ## build the pages into site/
	@OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

claims: $(STAMP) data ## run every claim of claims/ and write down what came out
	@$(BIN)/homeostat claims run --all

harm: $(STAMP) data ## measure the promise to do no harm and write docs/harm.md
	@OMP_NUM_THREADS=1 $(BIN)/python harm/run.py

bench: $(STAMP) data ## run every file in benchmarks/: ours beside its peers
	@$(call each,benchmarks)

data: ## Fashion-MNIST and WordNet from Debian's packages, where they can be installed
	@missing=""; for package in $(DATA_PACKAGES); do \
		dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null | grep -qx installed || missing="$$missing $$package"; \
	done; \
	[ -z "$$missing" ] || $(call debian_install,$$missing) \
		|| echo "data: going on without the Debian packages$$missing (installing them needs root on Debian)"

programs: ## what some tests start: PostgreSQL and a C compiler, where they can be installed
	@missing=""; \
	command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$$missing postgresql"; \
	command -v gcc >/dev/null || command -v cc >/dev/null || missing="$$missing gcc libc6-dev"; \
	[ -z "$$missing" ] || $(call debian_install,$$missing) \
		|| echo "programs: going on without$$missing (installing them needs root on Debian)"

clean: ## remove .venv, caches and build outputs
	@rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "homeostat needs Python 3.11 or newer: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(call debian_install,python3-venv) \
		|| { echo "$(PYTHON) cannot make virtual environments: install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing homeostat[$(EXTRAS)] into $(VENV)"
	@$(BIN)/python -m pip install --progress-bar off $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]' \
		>$(VENV)/install.log 2>&1 || { tail -n 25 $(VENV)/install.log >&2; exit 1; }
	@touch $@
