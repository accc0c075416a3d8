PYTHON ?= python3
DEMO_ARGS ?=
GPU_ARGS ?=
TEST_ARGS ?=

VENV := .venv
WHEEL_VENV := .venv-wheel
OLDEST_VENV := .venv-oldest
DEVELOPMENT_VENV := .venv-development
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Tests run side by side, each in one thread: small trainings are no faster in several. The long ones stand together, so that a
# worker without tests takes another's.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist worksteal
test test-oldest test-development: export OMP_NUM_THREADS := 1
# nnU-Net takes a thread for each core on a CPU; with several trainings at once, threads that spin take the time of others.
test test-oldest test-development: export OMP_WAIT_POLICY := PASSIVE

AXE := $(VENV)/node_modules/axe-core/axe.min.js

.PHONY: setup browser slurm test coverage test-oldest test-development lint docs demo wheel gpu clean

setup: $(INSTALLED)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev,docs]"
	touch $@

# What the tests in tests/browser need: Debian's Chromium, for which root's rights are needed, and the accessibility checks of axe-core.
# Without them these tests are skipped.
browser: setup $(AXE)
	test -x /usr/bin/chromium || { apt-get update && apt-get install -y --no-install-recommends chromium; }

# What the tests in tests/slurm need: Debian's SLURM, for which root's rights are needed. No daemon of it starts without a
# configuration; the tests start their own. Without it these tests are skipped.
slurm:
	test -x /usr/sbin/slurmctld || { apt-get update && apt-get install -y --no-install-recommends slurm-wlm; }

$(AXE):
	npm install --prefix $(VENV) --no-audit --no-fund axe-core@4

test: setup
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(TRACING) $(TEST_ARGS)

# The same with the lines that no test runs; tracing takes about a third more time.
coverage: TRACING := --cov=nnunetv2_genseg --cov-report=term-missing:skip-covered --cov-fail-under=90
coverage: test

# All unit tests and some trainings with the oldest versions of nnU-Net and everything else that pyproject.toml allows.
test-oldest:
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install -c constraints-oldest.txt -e ".[monai,torchio]" pytest pytest-xdist hypothesis
	$(OLDEST_VENV)/bin/python -m pytest $(SIDE_BY_SIDE) tests/unit
	$(OLDEST_VENV)/bin/python -m pytest $(SIDE_BY_SIDE) tests/integration/test_coverage.py -k "predicts and (2d or 3d_fullres) or cascade and labels"

# The same with nnU-Net as it is on its main branch, so that a change there is noticed before it is released.
test-development:
	$(PYTHON) -m venv $(DEVELOPMENT_VENV)
	$(DEVELOPMENT_VENV)/bin/python -m pip install -c constraints.txt -e ".[monai,quality,torchio]" pytest pytest-xdist hypothesis
	$(DEVELOPMENT_VENV)/bin/python -m pip install --upgrade git+https://github.com/MIC-DKFZ/nnUNet
	$(DEVELOPMENT_VENV)/bin/python -m pytest $(SIDE_BY_SIDE) tests/unit
	$(DEVELOPMENT_VENV)/bin/python -m pytest $(SIDE_BY_SIDE) tests/integration/test_coverage.py -k "predicts and (2d or 3d_fullres) or cascade and labels"

# The site, in build/site. Nothing is fetched from the network; a warning, such as a link that leads nowhere, is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: setup
	$(BIN)/genseg demo $(DEMO_ARGS)

# The check runs outside the repository, or the package would be imported from here instead of from the wheel. The environment takes
# several GB, and the next call makes it anew, so it goes when the check has passed.
wheel:
	rm -rf build dist $(WHEEL_VENV)
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python -m pip wheel --no-deps --wheel-dir dist .
	$(WHEEL_VENV)/bin/python -m pip install -c constraints.txt dist/*.whl
	outside=$$(mktemp -d) && trap 'rm -rf "$$outside"' EXIT && cd "$$outside" && \
		"$(CURDIR)/$(WHEEL_VENV)/bin/python" "$(CURDIR)/tests/wheel/check_wheel.py"
	rm -rf $(WHEEL_VENV)

# On a machine with a GPU. GPU_ARGS="--data FOLDER" adds trainings on real data, which `benchmarks/gpu.py --prepare` put there.
gpu:
	$(PYTHON) benchmarks/gpu.py --out build/gpu $(GPU_ARGS)

clean:
	rm -rf build dist *.egg-info $(WHEEL_VENV) $(OLDEST_VENV) $(DEVELOPMENT_VENV) .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.* coverage.xml
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
