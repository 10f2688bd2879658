# Two commands are enough: `make quickstart` and `make test`. Each creates .venv when it is not there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS ?= runs/quickstart
STAMP := $(VENV)/.installed

# As the commands do themselves (forec_jax/cli.py); for pytest and its processes.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: setup quickstart test slow parity notebooks store-notebooks docs bench lint format clean

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

# In so many processes, each of which takes up to 6 GB.
WORKERS ?= 2
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# Comparisons with PyTorch's own models; they are skipped where PyTorch is missing.
parity: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[parity]'
	$(BIN)/python -m pytest tests/models/test_parity.py tests/models/test_parity_transformers.py tests/models/test_convert.py \
		tests/models/test_pretrained.py tests/test_fuzz.py

notebooks: $(STAMP)
	$(BIN)/python -m pytest -m slow tests/test_notebooks.py

# Runs them at full length and stores what they show.
store-notebooks: $(STAMP)
	$(BIN)/python notebooks/store.py

# The pages of docs/ as a site, in site/: open site/index.html. A warning is an error.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs site

# What fits a CPU and takes some minutes; docs/performance.md has the commands for more, and for a GPU.
# Input is measured on the embedded shapes data unless VOC names the folder that holds VOC2012/.
VOC ?=
bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/train_step.py --method=supervised --encoder=resnet50 --batch=4 --crop=256
	$(BIN)/python benchmarks/train_step.py --method=forec --encoder=mobilenet_v2 --batch=16 --crop=128 --decoder-channels=64
	$(BIN)/python benchmarks/train_step.py --method=mean_teacher --encoder=mobilenet_v2 --batch=16 --crop=128 --decoder-channels=64
	$(BIN)/python benchmarks/operators.py --method=supervised --encoder=resnet50 --batch=4 --crop=256
	$(BIN)/python benchmarks/input_pipeline.py --root=$(VOC) --crop=321 --workers=0,1,2
	$(BIN)/python benchmarks/steady_state.py --root=$(VOC) --method=forec --encoder=mobilenet_v2 --batch=16 --crop=128
	$(BIN)/python benchmarks/evaluate.py --root=$(VOC) --encoder=mobilenet_v2 --images=64
	$(BIN)/python benchmarks/scaling.py --method=forec --encoder=mobilenet_v2 --batch=16 --crop=128 --batches=8,32 --crops=64,256 --devices=1,2,4,8

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
