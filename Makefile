# Every target works on a fresh checkout: it makes a virtual environment in .venv, installs what it
# needs from the package index and builds the operators. `make PYTHON=python3.12 ...` picks a Python.
PYTHON ?= python3
BIN := .venv/bin
BUILT_FROM := setup.py pyproject.toml $(shell find csrc -type f)
CPP_FILES := $(shell find benchmarks csrc tests -name "*.cpp" -o -name "*.h" -o -name "*.inl" -o -name "*.cu" -o -name "*.cuh")

.PHONY: help demo test sanitize bench lint format clean
.DELETE_ON_ERROR:

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/installed ## train a small network on real digits, convert it and compare, into demo/
	$(BIN)/bnn-ext demo

test: .venv/installed ## run the tests
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# Python itself is not instrumented, so the sanitizers' runtime is loaded first. A finding ends the
# process: pytest must not hold back what it prints.
sanitize: .venv/installed ## run the operators' tests under AddressSanitizer and UBSan (needs GCC)
	BNN_EXT_SANITIZE=1 BNN_EXT_CUDA=0 $(BIN)/python setup.py --quiet \
		build --build-lib build/sanitize build_ext --build-temp build/sanitize-objects
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=build/sanitize \
		$(BIN)/pytest --capture=no tests/test_ops*.py

bench: .venv/installed-bench ## measure against limits and peers, and draw: benchmarks/results/<cpu>/
	$(BIN)/python benchmarks/bench_conv.py --levels all
	$(BIN)/python benchmarks/bench_conv.py --shapes stride2 groups2 1x1 5x5 7x7 few_channels --outputs bits
	$(BIN)/python benchmarks/bench_gemm.py
	$(BIN)/python benchmarks/bench_real.py
	$(BIN)/python benchmarks/bench_pack.py
	$(BIN)/python benchmarks/bench_models.py
	$(BIN)/python benchmarks/bench_training_step.py
	$(BIN)/python benchmarks/plot.py

lint: .venv/installed-dev ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	$(BIN)/mypy

format: .venv/installed-dev ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

clean: ## remove everything that these targets make
	rm -rf .venv build demo dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f bnn_ext/*.so
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "bnn_ext needs Python 3.10 or newer with its venv module (Debian, Ubuntu: python3-venv)," \
		"found $$($(PYTHON) --version 2>&1); name another with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$@ -m pip install --upgrade pip

# torchvision is named beside torch so that pip picks two versions that belong together at once.
.venv/installed: $(BUILT_FROM) | $(BIN)/python
	$(BIN)/pip install 'setuptools>=77' ninja torch torchvision
	$(BIN)/pip install --no-build-isolation --editable '.[test]'
	@touch $@

.venv/installed-bench: .venv/installed
	$(BIN)/pip install --no-build-isolation --editable '.[bench]'
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --no-build-isolation --editable '.[dev]'
	@touch $@
