# What a person types. `make` lists it. Each flavour of the engine is installed into a virtual environment of its own, so
# that no extension lands in the source tree and a stale one is never imported.

PYTHON ?= python3
PYTEST_ARGS ?=
VENV := .venv
ASAN := .venv-asan
TSAN := .venv-tsan
GCOV := .venv-gcov
ENGINE := .venv-engine

SOURCES := $(shell find src setup.py pyproject.toml -type f -not -name '*.so')
BENCH_ARGS ?=
PROBE := $(wildcard tests/probe/*)
PIP_FLAGS := --quiet --disable-pip-version-check

# A virtual environment whose pip could not be brought up to date is made again.
.DELETE_ON_ERROR:

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

# Pip installs a folder anew each time, so one install with LLMPIPE_BUILD is the whole of it, and a later one without it
# would put a release engine in its place: tests of a flavour would pass and prove nothing. So what is there is looked at.
has = @grep -q $(2) $(1)/lib/python*/site-packages/llmpipe/_pipe.*.so || { echo "make: the engine in $(1) lacks $(2)" >&2; exit 1; }

# pip 25.1 is the first that installs dependency groups.
$(VENV)/bin/python $(ASAN)/bin/python $(TSAN)/bin/python $(GCOV)/bin/python $(ENGINE)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "llmpipe needs Python 3.10 or later")'
	$(PYTHON) -m venv $(@D)/..
	$@ -m pip install $(PIP_FLAGS) --upgrade 'pip>=25.1'

$(VENV)/installed: $(SOURCES) | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) .
	@touch $@

$(VENV)/benched: $(VENV)/installed
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) '.[bench]'
	@touch $@

$(VENV)/tested: $(VENV)/installed $(PROBE) pyproject.toml
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) --group test
	$(VENV)/bin/python tests/probe/setup.py --quiet build_ext --force --build-lib build/probe --build-temp build/temp
	@touch $@

$(ASAN)/tested: $(SOURCES) $(PROBE) | $(ASAN)/bin/python
	LLMPIPE_BUILD=asan $(ASAN)/bin/python -m pip install $(PIP_FLAGS) .
	$(call has,$(ASAN),__asan_init)
	$(ASAN)/bin/python -m pip install $(PIP_FLAGS) --group test
	LLMPIPE_BUILD=asan $(ASAN)/bin/python tests/probe/setup.py --quiet build_ext --force --build-lib build/probe-asan --build-temp build/temp-asan
	@for extension in build/probe-asan/*.so; do \
		grep -q __asan_init $$extension || { echo "make: $$extension lacks __asan_init" >&2; exit 1; }; done
	@touch $@

$(TSAN)/tested: $(SOURCES) $(PROBE) pyproject.toml | $(TSAN)/bin/python
	LLMPIPE_BUILD=tsan $(TSAN)/bin/python -m pip install $(PIP_FLAGS) .
	$(call has,$(TSAN),__tsan_init)
	$(TSAN)/bin/python -m pip install $(PIP_FLAGS) --group test
	$(TSAN)/bin/python tests/probe/setup.py --quiet build_ext --force --build-lib build/probe --build-temp build/temp
	@touch $@

$(GCOV)/tested: $(SOURCES) $(PROBE) | $(GCOV)/bin/python
	LLMPIPE_BUILD=gcov $(GCOV)/bin/python -m pip install $(PIP_FLAGS) .
	$(call has,$(GCOV),__gcov_)
	$(GCOV)/bin/python -m pip install $(PIP_FLAGS) --group test
	$(GCOV)/bin/python tests/probe/setup.py --quiet build_ext --force --build-lib build/probe --build-temp build/temp
	@touch $@

$(ENGINE)/installed: $(SOURCES) | $(ENGINE)/bin/python
	$(ENGINE)/bin/python -m pip install $(PIP_FLAGS) --group engine
	$(ENGINE)/bin/python -m pip install $(PIP_FLAGS) .
	@touch $@

.PHONY: demo
demo: $(VENV)/installed ## Run the proxy in front of a mock inference server
	@exec $(VENV)/bin/llmpipe serve --demo

.PHONY: curl
curl:
	@command -v curl >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq curl; } \
		|| echo "make: there is no curl and it could not be installed; the tests that need it are skipped" >&2

# What takes longer, and most of what makes its own inputs, is marked slow. A -m of yours comes later, and counts. The tests that are
# not slow mostly wait, so four run at once.
.PHONY: test
test: curl $(VENV)/tested ## Run the tests, in about 7 minutes
	$(VENV)/bin/python -m pytest -n 4 -m "not slow" $(PYTEST_ARGS)

.PHONY: test-all
test-all: curl $(VENV)/tested ## Run the tests, the slow ones too
	$(VENV)/bin/python -m pytest -n 3 $(PYTEST_ARGS)

.PHONY: engine-test
engine-test: $(ENGINE)/installed ## Run the tests against a real inference server (installs PyTorch and transformers)
	$(ENGINE)/bin/python -m pytest tests/engine -o norecursedirs= --timeout 600 $(PYTEST_ARGS)

# What is about Python, about the source or about pages is not run once more here: it starts so many processes that it would take
# longer than all others, and has the engine do nothing new.
ASAN_LEAVES_OUT := abort_calls access_fields access_file activation admin admin_actions bench_figures bench_imports bench_page benchmark \
	cli config config_file contract deploy docs engine_source events examples exchanges history import instructions log mock mock_replay \
	model_list names notify otel package parts prometheus recorder recording recording_file runner secrets settings status_page systemd top \
	upgrade

# Leaks are looked for by the tests' own counters: CPython never frees all that it has. A small quarantine keeps the
# sanitizer's own memory out of what the tests measure; the engine's slabs are poisoned by hand.
.PHONY: asan
asan: curl $(ASAN)/tested ## Run the engine's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" PYTHONMALLOC=malloc \
	ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 LLMPIPE_PROBE=build/probe-asan \
	$(ASAN)/bin/python -m pytest -n 4 $(ASAN_LEAVES_OUT:%=--ignore tests/test_%.py) $(PYTEST_ARGS)

# Only the engine is instrumented: what happens inside CPython is not looked at, its locks are. ThreadSanitizer of gcc 12 needs
# an address space that is not shuffled as far as newer kernels do, and a shell does not start under it: no test that lowers limits.
TSAN_TESTS := tests/test_threads.py tests/test_adopt.py tests/test_limits.py tests/test_balancing.py tests/test_queue.py tests/test_drain.py
.PHONY: tsan
tsan: $(TSAN)/tested ## Run the tests of what threads share under ThreadSanitizer
	LD_PRELOAD="$$(gcc -print-file-name=libtsan.so)" \
	TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1:second_deadlock_stack=1 \
	setarch -R $(TSAN)/bin/python -m pytest -n 2 $(TSAN_TESTS) -k "not descriptors" $(PYTEST_ARGS)

# libFuzzer comes with clang; T is seconds in all. Ends with 1 and the input where a rule was broken.
.PHONY: fuzz
fuzz: $(VENV)/tested ## Fuzz the readers and whole conversations, T=600 seconds in all, from SEED=0 (another each time)
	@test -e "$$(clang --print-resource-dir 2>/dev/null)/lib/linux/libclang_rt.fuzzer_no_main-$$(uname -m).a" \
		|| { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq clang libclang-rt-dev; } \
		|| { echo "make: there is no clang with libFuzzer, and it could not be installed (Debian: clang, libclang-rt-dev)" >&2; exit 1; }
	$(VENV)/bin/python tests/fuzz $(or $(T),600) --seed $(or $(SEED),0)

# Line numbers of the parts, not of the generated C; only what the running proxies did is counted, so no probe.
.PHONY: coverage
coverage: curl $(GCOV)/tested ## Run the tests and print how much of each part of the engine they ran
	find build/gcov -name '*.gcda' -delete
	$(GCOV)/bin/python -m pytest -n 2 $(PYTEST_ARGS)
	gcov --no-output $$(find build/gcov -name '_pipe.gcda') | grep -A 1 "^File 'src/_pipe"

.PHONY: soak
soak: $(VENV)/tested ## Leave the proxy running under random clients and failing backends for T seconds (3600)
	PYTHONPATH=tests $(VENV)/bin/python tests/soak.py --seconds $(or $(T),3600)

# The peers of Debian are looked for and left out with a reason where they are not.
.PHONY: bench
bench: $(VENV)/benched ## Measure beside the floor, nginx and HAProxy, into build/bench (about 8 minutes, two CPUs)
	$(VENV)/bin/python -m bench $(BENCH_ARGS)

.PHONY: bench-all
bench-all: $(VENV)/benched ## Measure beside every peer, five rounds, and put the results into bench/results (about 50 minutes)
	$(VENV)/bin/python -m bench --all --rounds 5 --install --output bench/results $(BENCH_ARGS)

.PHONY: valgrind
valgrind:
	@command -v valgrind >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq valgrind; } \
		|| { echo "make: there is no valgrind, and it could not be installed (Debian: valgrind)" >&2; exit 1; }

# INSTRUCTIONS_ARGS="--functions" shows where they are spent, "--python /other/.venv/bin/python" counts another checkout's
# engine, "--renew" writes the budget.
.PHONY: instructions
instructions: valgrind $(VENV)/installed ## Count the engine's instructions for an event, a request, a connection, a disconnect
	$(VENV)/bin/python tests/instructions.py $(INSTRUCTIONS_ARGS)

.PHONY: lint
lint: $(VENV)/installed ## Check style and types
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) --group lint
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cython-lint src/*.pyx src/_pipe/*.pxi src/_load/*.pxi tests/probe/*.pyx tests/probe/*.pxi
	$(VENV)/bin/mypy

# A page that is missing, or a link or an anchor that leads nowhere, is an error. The theme's word about its own future is left out.
.PHONY: docs
docs: | $(VENV)/bin/python ## Build the documentation into build/site
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) --group docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --quiet --strict
	@echo "make: the pages are in build/site, beginning with build/site/index.html"
.PHONY: pictures
pictures: $(VENV)/tested ## Take the pictures of the status page again, under load (about 16 minutes; needs chromium)
	$(VENV)/bin/python docs/images/make.py $(PICTURES_ARGS)

.PHONY: wheel
wheel: | $(VENV)/bin/python ## Build a wheel into dist/
	$(VENV)/bin/python -m pip wheel $(PIP_FLAGS) --no-deps --wheel-dir dist .

.PHONY: clean
clean: ## Remove what was built and installed
	rm -rf build dist $(VENV) $(ASAN) $(TSAN) $(GCOV) $(ENGINE) src/*.egg-info
