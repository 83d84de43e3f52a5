# What a developer runs. `make help` lists it; every target brings the environment up to date first.
#
#   PYTHON  the interpreter that .venv is made with, 3.11 or later:  make setup PYTHON=python3.12
#   ARGS    passed on to pytest, demo, benchmark:                    make test ARGS="-k selection -x"
#   JOBS    processes of make test, a thread each: one for each core  make test JOBS=1

PYTHON ?= python3
ARGS ?=
JOBS ?= auto
# A test that the timeout of 300 s does not end, as it hangs in C or in its cleaning up: all stacks are printed, and its
# process ends. One that ends is replaced, and repeats its test: twice at most, as that takes minutes each time.
PARALLEL := -n $(JOBS) --maxprocesses 8 --dist loadfile --max-worker-restart 2 \
	-o faulthandler_timeout=330 -o faulthandler_exit_on_timeout=true

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.fineprune-installed
RUNTIME := $(VENV)/.runtime-installed
OLDEST := $(VENV)/oldest
STRESS := benchmarks/results/stress.txt
# Several processes on CPUs cannot resume there: it maps what it loads to "cpu:0", which torch does not know.
OLDEST_TESTS := tests/checkpoint tests/training tests/tasks/test_modeling.py -k "not export and not processes"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Under -j the goals still run one after another: tests and benchmarks would take each other's cores, and time.
.NOTPARALLEL:

.PHONY: help setup demo test oldest realdata stress docs lint bench bench-engine study pictures runtime-alone wheels arm sanitize clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## make .venv and install the project with its tools; again only what changed

# pip is what venv writes last: an environment that was interrupted half-way is made again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit("fineprune needs Python >= 3.11, and %s is %d.%d: make setup PYTHON=..." % (sys.executable, *sys.version_info[:2]) if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# runtime/, whose C++ is compiled when it changed: in .venv itself, since only there the last build can be continued.
$(RUNTIME): runtime/pyproject.toml runtime/CMakeLists.txt $(wildcard runtime/native/*) | $(BIN)/pip
	$(BIN)/python -m pip install -q -c constraints.txt scikit-build-core cmake ninja
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e ./runtime
	@touch $@

# torch first and under its pin: a CPU build that pip finds is then settled before anything else asks for torch.
# A new runtime does not install the rest again, as it stands behind the bar.
$(STAMP): pyproject.toml constraints.txt | $(RUNTIME)
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)  ## prune the embedded model on the embedded data, no network
	$(BIN)/fineprune demo $(ARGS)

test: $(STAMP)  ## the tests that need neither network nor data sets
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not realdata" $(PARALLEL) $(ARGS)

# Laid over .venv by PYTHONPATH: the oldest transformers that pyproject.toml allows, and what that asks for.
$(OLDEST)/.installed: $(STAMP)
	rm -rf $(OLDEST)
	$(BIN)/python -m pip install --no-deps --target $(OLDEST) transformers==5.16.1 huggingface_hub==1.33.0 \
		httpx==0.28.1 httpcore==1.0.9 certifi
	@touch $@

oldest: $(OLDEST)/.installed  ## tests of training, saving and loading with the oldest supported transformers
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONPATH=$(OLDEST) $(BIN)/python -m pytest $(OLDEST_TESTS) $(PARALLEL) $(ARGS)

realdata: $(STAMP)  ## the tests on the real data sets of FINEPRUNE_DATA
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m realdata $(ARGS)

stress: $(STAMP)  ## the tests that make test thins, whole; writes benchmarks/results/stress.txt
	@date -u '+%F: make stress' > $(STRESS).new
	FINEPRUNE_STRESS=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m stress --durations 12 $(ARGS) \
		>> $(STRESS).new || { cat $(STRESS).new; exit 1; }
	@mv $(STRESS).new $(STRESS)
	@cat $(STRESS)

docs: $(STAMP)  ## the documentation site, in build/docs; warnings are errors
	HF_HUB_OFFLINE=1 $(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

lint: $(STAMP)  ## ruff check, ruff format --check, clang-format, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror runtime/native/*
	$(BIN)/mypy

bench: $(STAMP)  ## time the selection, the cost of pruning a step, and the codec; asserts nothing
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/selection.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/overhead.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/compact.py codec

bench-engine: $(STAMP)  ## time the engine beside other runtimes, hours; resumes; ARGS="--case 1x128 --threads 1" for a part
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/engine.py $(ARGS)
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/engine.py --table

study: $(STAMP)  ## the paper's Tables 2 and 3, its curves and a longer run, in small, on ../shared/data; hours, resumes
	HF_HUB_OFFLINE=1 $(BIN)/fineprune study small-table2 --jobs 2 $(ARGS)
	HF_HUB_OFFLINE=1 $(BIN)/fineprune study small-table3 --jobs 2 $(ARGS)
	HF_HUB_OFFLINE=1 $(BIN)/fineprune study small-curves --jobs 2 $(ARGS)
	HF_HUB_OFFLINE=1 $(BIN)/fineprune study small-longer --jobs 2 $(ARGS)
	for name in small longer; do mkdir -p benchmarks/results/$$name \
		&& cp runs/$$name/rows.json runs/$$name/tables.md runs/$$name/tables.csv benchmarks/results/$$name/ || exit 1; done

pictures: $(STAMP)  ## the study behind the two pictures of docs/concepts.md, 25 runs of one to two minutes of a core; resumes
	$(BIN)/fineprune study small-curves --out runs/curves --jobs 2 $(ARGS)
	cp runs/curves/figures/score-by-density.png runs/curves/figures/remaining-weights.png docs/pictures/

# What a user of the runtime has: its wheel and what that asks for, and no more. Sizes are without the byte code that
# Python writes at its first start (a quarter more), and without pip.
ALONE := $(VENV)/alone
ALONE_MB := 100
runtime-alone: $(STAMP)  ## the wheel of runtime/ in an environment of its own: its size, and predictions without torch
	rm -rf build/alone $(ALONE)
	$(BIN)/python -m pip wheel -q --no-build-isolation --no-deps -w build/alone ./runtime
	$(BIN)/python -m venv --without-pip $(ALONE)
	$(BIN)/python -m pip --python $(ALONE)/bin/python install -q --no-compile -c constraints.txt build/alone/*.whl
	@size=$$(du -s --apparent-size --block-size=MB $(ALONE) | cut -f1); echo "the environment takes $$size"; \
		test "$${size%MB}" -le $(ALONE_MB) || { echo "that is more than $(ALONE_MB)MB" >&2; exit 1; }
	HF_HUB_OFFLINE=1 $(BIN)/python tests/runtime/make_alone.py build/alone/model
	$(ALONE)/bin/python tests/runtime/alone.py build/alone/model

wheels: $(STAMP)  ## wheels and sdists of both packages in dist/, installed without a compiler and tried
	.ci/wheels

arm: $(STAMP)  ## the engine's tests on AArch64, emulated; as root, it installs the emulator; ARGS="tests/runtime -k neon" for others
	.ci/arm $(ARGS)

# gcc's sanitizers have to be in the process before Python starts, and so has libstdc++, whose exceptions they watch.
# Python itself leaks by design.
SANITIZED := build/sanitized
SANITIZED_TESTS ?= tests/runtime/test_fuzz_engine.py
sanitize: $(STAMP)  ## fuzz the engine, compiled with sanitizers and FP_CHECK (gcc); SANITIZED_TESTS=... for other tests
	$(BIN)/cmake -S runtime -B $(SANITIZED) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
		-DCMAKE_CXX_COMPILER=g++ -DFINEPRUNE_RUNTIME_SANITIZE=ON
	$(BIN)/cmake --build $(SANITIZED)
	HF_HUB_OFFLINE=1 FINEPRUNE_RUNTIME_LIBRARIES=$(abspath $(SANITIZED)) ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
		FUZZ_ENGINE_CASES=$${FUZZ_ENGINE_CASES:-30000} \
		$(BIN)/python -m pytest $(SANITIZED_TESTS) $(ARGS)

clean:  ## remove caches and build artifacts; keeps .venv, runs/ and fineprune-demo/
	rm -rf build dist runtime/build runtime/dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find . \( -path ./$(VENV) -o -path ./.git \) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
