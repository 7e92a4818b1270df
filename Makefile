# SPDX-License-Identifier: Apache-2.0
# The entry points; `make` alone lists them. All state lives under BUILD_DIR.

BASE ?= v0.19.1
BUILD_DIR ?= build
SOURCE ?= archive
SOURCES ?=
DEVICE ?= auto
KERNELS ?= precompiled
CUDA_ARCHS ?=
TORCH_INDEX ?=
MODEL ?=
PYTHON ?= python3
JOBS ?=

ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
TOOLS := $(BUILD_DIR)/tools
DEV := $(BUILD_DIR)/dev
ENV := $(BUILD_DIR)/$(BASE)/env
COMMON = --base '$(BASE)' --build-dir '$(BUILD_DIR)'
FETCH = --source '$(SOURCE)' $(if $(SOURCES),--sources '$(SOURCES)')
BUILD = --device '$(DEVICE)' --kernels '$(KERNELS)' \
  $(if $(CUDA_ARCHS),--cuda-archs '$(CUDA_ARCHS)') \
  $(if $(TORCH_INDEX),--torch-index '$(TORCH_INDEX)') $(if $(JOBS),--jobs '$(JOBS)')
export PYTHONPATH := $(ROOT)/scripts

SERIES = $(TOOLS)/bin/python -m series
# Works without any environment, so also where one cannot be made.
BARE = $(PYTHON) -m series

CAPABILITIES = $(TOOLS)/bin/python -m proof.capabilities --build-dir '$(BUILD_DIR)'

# A stamp is named after what it was made from, so that an unchanged one costs nothing.
stamp = $(1)/.made-$(shell cat $(2) 2>/dev/null | cksum | cut -d' ' -f1)-$(notdir $(PYTHON))
TOOLS_MADE := $(call stamp,$(TOOLS),$(ROOT)/ci/locks/tools.txt)
DEV_MADE = $(call stamp,$(DEV),$(ROOT)/ci/locks/dev.txt)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help doctor fetch apply unapply status export check drop-when build demo test test-tool test-model \
  capabilities test-each evaluate lossless train mutate locks clean distclean

help:  ## print this list
	@echo "make TARGET [VARIABLE=value]"; echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' '$(firstword $(MAKEFILE_LIST))' \
	  | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'
	@echo; echo "variables: BASE BUILD_DIR SOURCE SOURCES DEVICE KERNELS CUDA_ARCHS TORCH_INDEX"
	@echo "           MODEL PYTHON JOBS (see docs/maintain/workflow.md#variables)"

doctor:  ## name each missing prerequisite and the command that mends it
	@command -v '$(PYTHON)' >/dev/null || \
	  { echo "error: $(PYTHON) is not installed; apt-get install python3, or set PYTHON=" >&2; exit 1; }
	@$(BARE) doctor $(COMMON) --device '$(DEVICE)' --kernels '$(KERNELS)'

fetch: $(TOOLS_MADE)  ## get the pinned source and compare its sha256
	@$(SERIES) fetch $(COMMON) $(FETCH)

apply: $(TOOLS_MADE)  ## make or update the work tree: one commit a patch
	@$(SERIES) apply $(COMMON) $(FETCH)

unapply: $(TOOLS_MADE)  ## take the work tree back to the pinned source
	@$(SERIES) unapply $(COMMON) $(FETCH)

status: $(TOOLS_MADE)  ## say what the work tree holds
	@$(SERIES) status $(COMMON)

export: $(TOOLS_MADE)  ## write the commits of the work tree to patches/
	@$(SERIES) export $(COMMON)

check: $(TOOLS_MADE)  ## lint, exact apply, round trip, lock, true trailers
	@$(SERIES) check $(COMMON) $(FETCH)

drop-when: $(TOOLS_MADE)  ## what each patch says about later releases, and whether it is true
	@$(SERIES) drop-when $(COMMON) $(FETCH)

build: apply  ## make the environment and the kernels
	@$(SERIES) build $(COMMON) $(FETCH) $(BUILD)

demo: build  ## from nothing to an answer about a picture
	@$(ENV)/bin/python -m tiny.demo --tree '$(BUILD_DIR)/$(BASE)/vllm' \
	  --folder '$(BUILD_DIR)/demo' $(if $(MODEL),--model '$(MODEL)')

test: test-tool test-model  ## test-tool and test-model

test-tool: $(DEV_MADE)  ## tests, lint and types of the tool itself
	@cd '$(ROOT)' && '$(abspath $(DEV))/bin/ruff' check scripts ci
	@cd '$(ROOT)' && '$(abspath $(DEV))/bin/ruff' format --check scripts ci
	@cd '$(ROOT)' && '$(abspath $(DEV))/bin/mypy'
	@cd '$(ROOT)' && '$(abspath $(DEV))/bin/python' -m pytest -q ci/tests/tool

test-model: build  ## run the tests of the series in the work tree
	@$(SERIES) test-model $(COMMON)
	@$(CAPABILITIES) --check

capabilities: $(TOOLS_MADE)  ## docs/capabilities.md from the reports of the last test-model
	@$(CAPABILITIES)

test-each: build  ## run each patch's own tests on the tree after that patch
	@$(SERIES) test-each $(COMMON)

evaluate: build  ## held-out accuracy and draft acceptance of the tiny checkpoint (3 minutes)
	@cd '$(ROOT)/scripts' && '$(abspath $(ENV))/bin/python' -m tiny.evaluate \
	  --tree '$(abspath $(BUILD_DIR))/$(BASE)/vllm'

lossless: build  ## the tiny checkpoint with drafts and each option, against without (15 minutes)
	@cd '$(ROOT)/scripts' && '$(abspath $(ENV))/bin/python' -m tiny.lossless \
	  --tree '$(abspath $(BUILD_DIR))/$(BASE)/vllm'

train: build  ## train the tiny checkpoint from nothing (15 minutes on an H100)
	@cd '$(ROOT)/scripts' && '$(abspath $(ENV))/bin/python' -m tiny.train \
	  --tree '$(abspath $(BUILD_DIR))/$(BASE)/vllm' --out '$(abspath $(BUILD_DIR))/tiny'

mutate: build  ## plant errors in the model; a named test must notice each (an hour)
	@$(ENV)/bin/python -m proof.mutants --tree '$(BUILD_DIR)/$(BASE)/vllm'

locks: $(DEV_MADE)  ## renew ci/locks/tools.txt and dev.txt from their .in files
	@cd '$(ROOT)' && for name in tools dev; do \
	  '$(abspath $(DEV))/bin/uv' pip compile --quiet --upgrade --universal --generate-hashes \
	    --python-version 3.10 --no-emit-index-url --custom-compile-command 'make locks' \
	    ci/locks/$$name.in -o ci/locks/$$name.txt || exit; \
	done

clean:  ## remove the work tree, unless it holds edits
	@$(BARE) clean $(COMMON)

distclean:  ## remove everything under the build folder, unless a work tree holds edits
	@$(BARE) distclean $(COMMON)

# flock, because two makes may start at once. pip's constraints and find-links of the machine must
# not interfere: every file is named by its hash.
define make_venv
	@mkdir -p '$(dir $(1))'
	@flock '$(1).lock' sh -ec ' \
	  [ ! -e "$$1" ] || exit 0; \
	  echo "making $$2" >&2; \
	  rm -rf "$$2"; \
	  "$$3" -c "import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))" 2>/dev/null || \
	    { echo "error: $$3 is not Python 3.10 to 3.13; set PYTHON=, see make doctor" >&2; exit 2; }; \
	  "$$3" -m venv "$$2" >/dev/null || \
	    { echo "error: $$3 cannot make a virtual environment; see make doctor" >&2; exit 7; }; \
	  PIP_CONSTRAINT=/dev/null PIP_DISABLE_PIP_VERSION_CHECK=1 "$$2/bin/python" -m pip install \
	    --quiet --no-deps --only-binary :all: --require-hashes -r "$$4" || \
	    { rm -rf "$$2"; echo "error: cannot install $$4; check pip'"'"'s index and proxy" >&2; exit 7; }; \
	  touch "$$1"' sh '$@' '$(1)' '$(PYTHON)' '$(2)'
endef

$(TOOLS_MADE):
	$(call make_venv,$(TOOLS),$(ROOT)/ci/locks/tools.txt)

$(DEV)/.made-%:
	$(call make_venv,$(DEV),$(ROOT)/ci/locks/dev.txt)
