# `make demo` and `make test` need python3 >= 3.11 and a C++ compiler, nothing else.
PYTHON ?= python3
MODEL ?= smollm2-135m-instruct
TEXT ?= docs/demo.txt
BIN := .venv/bin
EDGECS := $(BIN)/edgecs

NATIVE := $(wildcard edgecs/native/*.cpp edgecs/native/*.h tests/native/*.cpp)
DRAWN := $(addprefix docs/images/,cascades.svg curve.svg rooms.svg)

CASES ?= 2000
KILLS ?= 200

# `make RPC=1 TARGET` also compiles llama.cpp's RPC backend, for --rpc and `edgecs worker`.
RPC_BACKEND := $(if $(filter-out 0,$(RPC)),.venv/rpc)

.PHONY: demo test fuzz kills vulkan lint page fix docs site dist bench clean

demo: .venv/base $(RPC_BACKEND)  ## install, fetch the default model, correct a text, say how fast
	@printf '\n'; cat "$(TEXT)"; printf '\n'
	$(EDGECS) generate -m $(MODEL) -f "$(TEXT)" -n 256 --temp 0 --explain --compare

test: lint $(RPC_BACKEND)  ## install, lint, types, all tests (fetches the default model once)
	$(BIN)/python -m pytest

fuzz: .venv/dev  ## new examples for the tests, then CASES hostile inputs; SEED=n repeats
	@seed=$${SEED:-$$($(BIN)/python -c 'import secrets; print(secrets.randbelow(10**6))')}; \
	echo "this is repeated by: make fuzz SEED=$$seed CASES=$(CASES)"; \
	$(BIN)/python -m pytest -q -m "hypothesis and not model" --hypothesis-profile=new \
	    --hypothesis-seed=$$seed tests && \
	$(BIN)/python -m tests.fuzz --cases $(CASES) --seed $$seed

kills: .venv/dev  ## kills commands KILLS times and counts what is lost; SEED=n repeats
	@seed=$${SEED:-$$($(BIN)/python -c 'import secrets; print(secrets.randbelow(10**6))')}; \
	echo "this is repeated by: make kills SEED=$$seed KILLS=$(KILLS)"; \
	$(BIN)/python -m tests.kills --kills $(KILLS) --seed $$seed

# Without a GPU, a software driver such as Mesa's llvmpipe is tested: llama.cpp uses that
# only if GGML_VK_VISIBLE_DEVICES names it, here as the first device. It compiles a shader
# in up to a minute, once: the tests give their processes other folders for caches.
vulkan: export GGML_VK_VISIBLE_DEVICES ?= 0
vulkan: export MESA_SHADER_CACHE_DIR ?= $(CURDIR)/.venv-vulkan/shaders
vulkan: .venv-vulkan/base  ## the tests of layers on a GPU; compiles llama.cpp with Vulkan
	@.venv-vulkan/bin/python -c 'from edgecs.engines.llama import library; \
	    print(*library.devices() or exit("llama.cpp finds no Vulkan device"), sep="\n")'
	.venv-vulkan/bin/python -m pytest -q --timeout 3600 tests/session/test_offloaded.py

lint: .venv/dev page  ## formatting, style, types, generated documents
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/cog --check README.md docs/*.md $(DRAWN)
	$(BIN)/mkdocs build --quiet --strict

page:  ## whether the built web page is what its sources give; needs npm
	@cd edgecs/server/page && if npm ci --silent --no-audit --no-fund --ignore-scripts; \
	then npm run check; else echo "not checked: the web page, as npm failed" >&2; fi

fix: .venv/dev  ## let the tools mend what they can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

docs: .venv/dev  ## write the generated parts of the documents
	$(BIN)/cog -r README.md docs/*.md $(DRAWN)

site: .venv/dev  ## the documentation as a web site, at http://127.0.0.1:8000
	$(BIN)/mkdocs serve

dist: .venv/base  ## a wheel for this platform, with compiled kernels, in dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

bench: .venv/base  ## what edgecs itself costs on this machine
	$(BIN)/python -m edgecs_bench.overhead

clean:  ## remove the virtual environment and caches
	rm -rf .venv .venv-vulkan .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "edgecs needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

# GCC's AMX header says that ldtilecfg reads 8 bytes of its 64, so the compiler drops the
# rest of llama.cpp's tile configuration, and every answer is a crash on processors that
# have AMX (llama.cpp's pull request 26954). These flags keep what looks unused.
ifeq ($(shell uname -m),x86_64)
ifneq ($(findstring Free Software Foundation,$(shell $(CXX) --version 2>/dev/null)),)
export CMAKE_ARGS ?= -DCMAKE_CXX_FLAGS='-fno-dse -fno-tree-dse'
endif
endif

# llama-cpp-python is compiled here: 4 to 10 minutes, once. Then the kernels: one or two.
.venv/base: .venv/bin/python pyproject.toml $(NATIVE)
	$(BIN)/python -m pip install -e .
	$(BIN)/python -m edgecs.engines.llama.kernels
	@touch $@

# The backend is a library that the installed llama.cpp loads: two files, not a build of
# llama.cpp in an environment of its own.
.venv/rpc: .venv/base edgecs/native/rpc_backend.py
	$(BIN)/python -m edgecs.engines.llama.rpc
	@touch $@

# llama-cpp-python comes first: pip would take a cached wheel without Vulkan, or cache this
# one for the other environment.
.venv-vulkan/base: pyproject.toml $(NATIVE)
	$(PYTHON) -m venv .venv-vulkan
	.venv-vulkan/bin/python -m pip install --quiet --upgrade pip
	CMAKE_ARGS="$$CMAKE_ARGS -DGGML_VULKAN=on" .venv-vulkan/bin/python -m pip install \
	    --no-cache-dir --no-binary llama-cpp-python \
	    "$$(sed -n 's/^ *"\(llama-cpp-python[^"]*\)".*/\1/p' pyproject.toml)"
	.venv-vulkan/bin/python -m pip install -e . hypothesis pytest pytest-timeout
	.venv-vulkan/bin/python -m edgecs.engines.llama.kernels
	@touch $@

# With the exporter and plots, which the tests use: torch is large.
.venv/dev: .venv/base
	$(BIN)/python -m pip install -e ".[dev,convert,plot,serve,clients]"
	@if command -v npm >/dev/null; then \
	    npm install --silent --no-audit --no-fund --prefix .venv openai || \
	    echo "openai from npm is not installed: its test is skipped" >&2; fi
	@touch $@
