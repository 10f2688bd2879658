# Two commands are enough: `make quickstart` and `make test`. Each creates .venv when it is not there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS ?= runs/quickstart
STAMP := $(VENV)/.installed

.PHONY: setup quickstart test slow parity notebooks lint format clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version}: make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# Supervised and FOrec on the embedded shapes data with the same steps, labels and colour changes, then a table.
quickstart: $(STAMP)
	$(BIN)/forec-jax train --config=configs/shapes.py:supervised --workdir=$(RUNS)/supervised
	$(BIN)/forec-jax train --config=configs/shapes.py:forec --workdir=$(RUNS)/forec
	$(BIN)/forec-jax table --workdirs=$(RUNS)/supervised,$(RUNS)/forec --splits=val,val_decorrelated
	@echo
	@echo "Pictures (input, truth, prediction, confidence, reconstruction):"
	@ls $(RUNS)/*/pictures/last.png

test: $(STAMP)
	$(BIN)/python -m pytest

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# Comparisons with PyTorch's own models; they are skipped where PyTorch is missing.
parity: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[parity]'
	$(BIN)/python -m pytest tests/models/test_parity.py tests/models/test_convert.py tests/models/test_pretrained.py

notebooks: $(STAMP)
	$(BIN)/python -m pytest -m slow tests/test_notebooks.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
