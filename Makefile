# What daily work needs; README.md says when. Every target sets up .venv first if it is not there or out of date.
#   make demo ARGS="--events 10000 --faults"     make test ARGS="tests/engine -x"     make simulate SEEDS=3000
#   make soak EVENTS=2000000 ARGS="--json artifacts/soak.json"     make fuzz SECONDS=600 ARGS="decode"
#   make wheels ARGS="--python 3.12"     make lock ARGS=--upgrade
#   make bench ARGS="--quick"     make bench ARGS="--rates idle,1000 --systems pinstream,plain"     make bench ARGS="--help"
ARGS ?=
SEEDS ?= 300
EVENTS ?= 2000000
SECONDS ?= 60
# The number of test processes, which share one Kafka and divide the tests as tests/conftest.py says. Tests on real parts wait
# most of their time: six keep two processors busy. `WORKERS=0`: all in one, for a debugger.
WORKERS ?= 6

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
COMPILED := $(VENV)/.compiled
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
RELEASE_PIP = $(RELEASE)/bin/python -m pip --quiet --disable-pip-version-check
LOCKED := --require-hashes --constraint constraints.txt
# What `make wheels` and `make lock` need: uv, a compiler for other machines, and what names the wheels.
RELEASE := .venv-release
RELEASE_READY := $(RELEASE)/.ready
# What the benchmark measures pinstream against: an environment of its own, which only `make bench` sets up.
RIVALS := .venv-bench
RIVALS_READY := $(RIVALS)/.ready
# helm and schemas, for the tests of the chart; without them those tests are skipped.
CHART_TOOLS_READY := tests/deploy/target/.ready
# Not empty if ARGS ask for one of those: by name, or by omitting which.
RIVALS_WANTED = $(if $(findstring --systems,$(ARGS)),$(findstring faststream,$(ARGS))$(findstring quix,$(ARGS)),$(if \
	$(filter --help -h --growth --file --file=%,$(ARGS)),,all))
PYTEST = $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations=15
# What others running beside them would change: they measure, or keep the disk busy.
ALONE := tests/benchmark/test_ratio.py tests/benchmark/test_rates.py tests/image
MERMAID := website/target/mermaid.min.js
CODE := consumer tests benchmarks website hatch_build.py .ci/check_commits.py .ci/release.py .ci/sbom.py .ci/wheels.py

# Tests found a second time are not compiled again by each of the processes: three quarters of the time of that.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check simulate bench soak fuzz wheels lock site clean FORCE

help:
	@echo "make setup | demo | test | test-all | check | simulate | bench | soak | fuzz | wheels | lock | site | clean   (see README.md)"

setup: $(READY)

demo: $(READY)
	@$(BIN)/pinstream demo $(ARGS)

# What a change needs, within ten minutes.
test: $(READY)
	$(PYTEST) --numprocesses $(WORKERS) $(ARGS)

# And what only a release needs: the tests marked slow. What cannot be installed here is skipped, and said.
test-all: $(READY)
	@$(MAKE) --no-print-directory $(RIVALS_READY) || echo "going on without FastStream and Quix Streams" >&2
	@$(MAKE) --no-print-directory $(CHART_TOOLS_READY) || echo "going on without helm" >&2
	@$(MAKE) --no-print-directory $(MERMAID) || echo "going on without the site's diagrams" >&2
	@failed=0; set -x; \
	$(PYTEST) --all --numprocesses $(WORKERS) $(ALONE:%=--ignore=%) $(ARGS) || failed=1; \
	$(PYTEST) --all --numprocesses 1 $(ALONE) $(ARGS) || failed=1; \
	exit $$failed
ifeq ($(strip $(ARGS)),)
	@$(MAKE) --no-print-directory wheels ARGS="--python $$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])') --machine $$(uname -m)"
endif

check: $(READY)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

simulate: $(READY)
	$(BIN)/python -m tests.simulation $(SEEDS)

# Without the others (nothing to install them from) it measures what is there, and says what is not.
bench: $(READY)
ifneq ($(RIVALS_WANTED),)
	@$(MAKE) --no-print-directory $(RIVALS_READY) || echo "going on without FastStream and Quix Streams" >&2
endif
	$(BIN)/python -m benchmarks $(ARGS)

soak: $(READY)
	$(BIN)/python -m benchmarks.soak --events $(EVENTS) $(ARGS)

fuzz: $(READY)
	$(BIN)/python -m tests.fuzzing --seconds $(SECONDS) $(ARGS)

# Source package and wheels in dist/, each tried; ARGS="--python 3.12" makes one. Pythons that are missing are named.
wheels: $(RELEASE_READY)
	$(RELEASE)/bin/python .ci/wheels.py $(ARGS)

# What changed in pyproject.toml goes into the lock; ARGS=--upgrade renews all, but for the build backend, whose versions stand
# in pyproject.toml. Without an index's name: each has its own.
lock: $(RELEASE_READY)
	@$(RELEASE)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])' | \
		tr ' ' '\n' >$(RELEASE)/build.txt
	$(RELEASE)/bin/uv pip compile --constraint $(RELEASE)/build.txt --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
		--all-extras --group dev --group release --group chart --output-file constraints.txt $(ARGS) pyproject.toml

# Strictly, and then every link within it is followed.
site: $(READY) $(MERMAID)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --config-file website/mkdocs.yml
	$(BIN)/python -m website.links artifacts/site

# What draws diagrams comes with the site, so that a reader's browser asks nobody else for it. The checksum is the pin.
$(MERMAID): website/tools.sh
	@website/tools.sh $@

$(CHART_TOOLS_READY): tests/deploy/tools.sh tests/deploy/strimzi/pom.xml | $(READY)
	@tests/deploy/tools.sh $(abspath $(BIN))/python
	@touch $@

clean:
	rm -rf $(VENV) .venv-newest $(RIVALS) $(RELEASE) build dist artifacts .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf website/target tests/support/kafka/target tests/support/registry/target tests/deploy/target
	rm -rf consumer/*/native/*.so consumer/*/*/native/*.so
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

# What pyproject.toml says that the package needs: a group has no way to name it.
export define DEPENDENCIES
import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")
endef

# The first of these that runs and is new enough. (A pyenv shim may be on the path and still not run.)
define FIND_PYTHON
for python in $(PYTHON) python3.11 python3; do \
	if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
	python=; \
done; \
if [ -z "$$python" ]; then \
	echo "pinstream needs Python 3.11 or newer: install it, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	exit 1; \
fi
endef

# Asked for, or on a machine without a compiler: the package is plain Python, and one line says so. In CI the build
# fails there, as it does for wheels and images.
define FIND_COMPILER
if [ -z "$$CI" ] && ! $(BIN)/python hatch_build.py; then \
	export PINSTREAM_NO_COMPILE=1; \
	echo "no C compiler or no Python headers here: going on without the compiled fast path, which makes an event about twelve times as expensive; install them and run: make clean setup" >&2; \
fi
endef

# Everything has its version and its hash in the lock. pip first, by its lines there: `--group`, and hashes by a
# constraint, need a later one than most Pythons bring. The package comes last, since a folder has no hash; the build
# backend is in the group, so that the build fetches nothing.
$(READY): pyproject.toml constraints.txt $(COMPILED)
	@$(FIND_PYTHON); \
	echo "setting up $(VENV) with $$("$$python" --version); this takes about a minute" >&2; \
	[ -x $(BIN)/python ] || "$$python" -m venv $(VENV)
	@sed -n '/^pip==/,/[^\]$$/p' constraints.txt >$(VENV)/pip.txt
	@$(PIP) install --requirement $(VENV)/pip.txt
	@$(BIN)/python -c "$$DEPENDENCIES" >$(VENV)/dependencies.txt
	@$(PIP) install $(LOCKED) --group dev --requirement $(VENV)/dependencies.txt
	@$(FIND_COMPILER); $(PIP) install --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q consumer # as an installation has it, also with PYTHONDONTWRITEBYTECODE
	@touch $(COMPILED) $@

# Asked each time, since time stamps do not tell: whether the compiled modules are there (`git clean` takes them), and are made of
# these sources. Only if not it is touched, and all is set up again.
$(COMPILED): FORCE
	@[ ! -e $(READY) ] || $(BIN)/python hatch_build.py --current || \
	{ echo "what is compiled is gone, or not of these sources: building it again" >&2; touch $@; }

# Without .venv, which cannot be set up while the lock lacks something: `make lock` adds it.
$(RELEASE_READY): constraints.txt
	@$(FIND_PYTHON); [ -x $(RELEASE)/bin/python ] || "$$python" -m venv $(RELEASE)
	@sed -n '/^pip==/,/[^\]$$/p' constraints.txt >$(RELEASE)/pip.txt
	@$(RELEASE_PIP) install --requirement $(RELEASE)/pip.txt
	@$(RELEASE_PIP) install $(LOCKED) --group release
	@touch $@

$(RIVALS_READY): benchmarks/rivals/requirements.txt
	@echo "setting up $(RIVALS) with FastStream and Quix Streams; this takes about a minute" >&2
	@[ -x $(RIVALS)/bin/python ] || $(BIN)/python -m venv $(RIVALS)
	@$(RIVALS)/bin/python -m pip --quiet --disable-pip-version-check install --requirement $<
	@touch $@
