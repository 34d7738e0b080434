# Two commands do everything: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test fast check bench docs clean

demo: .venv/base
	$(BIN)/bitlens demo --out bitlens-demo --overwrite

test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

fast: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# What the README shows of the demo, and the list of numbers; tests compare both with what is so.
docs: .venv/base
	$(BIN)/python tools/render_demo.py docs/demo.svg docs/demo.txt
	$(BIN)/python tools/list_numbers.py docs/numbers.md

bench: .venv/bench
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.pruning

.venv/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/dev: .venv/base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# What dictionary_learning asks for includes torchvision, whose build must match torch's; its trainers need none of it.
.venv/bench: .venv/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps dictionary-learning nnsight
	touch $@

clean:
	rm -rf .venv bitlens-demo build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
