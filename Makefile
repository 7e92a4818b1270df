# SPDX-License-Identifier: Apache-2.0
# The entry points; `make` alone lists them. All state lives under BUILD_DIR.

ifeq ($(wildcard scripts/series),)
$(error run make in the folder of this Makefile, or with -C)
endif

BUILD_DIR ?= build
BASE ?= v0.19.1

empty :=
# Settings that were given before; what is given now wins, and is kept in turn.
-include $(subst $(empty) ,\ ,$(BUILD_DIR))/config.mk
PYTHON ?= python3

# Only what was given now is handed on: the rest is in the file, or has its default.
given = $(if $(filter command environment,$(firstword $(origin $(1)))),$(2) '$(subst ','\'',$($(1)))')
COMMON = --base '$(BASE)' --build-dir '$(BUILD_DIR)'
BASES = $(notdir $(patsubst %/,%,$(dir $(wildcard patches/*/base.toml))))
CHECKED = $(if $(filter command environment,$(firstword $(origin BASE))),'$(BASE)',$(BASES))
FETCH = $(call given,SOURCE,--source) $(call given,SOURCES,--sources) $(call given,PYTHON,--python)
BUILD = $(FETCH) $(call given,DEVICE,--device) $(call given,KERNELS,--kernels) \
  $(call given,CUDA_ARCHS,--cuda-archs) $(call given,TORCH_INDEX,--torch-index) \
  $(call given,KERNEL_CACHE,--kernel-cache)

export PYTHONPATH := $(CURDIR)/scripts
# PYTHON= empty is what forgets it.
interpreter = $(or $(PYTHON),python3)
# The tool needs the standard library alone. -B: no byte code in the checkout.
SERIES = command -v '$(interpreter)' >/dev/null || { \
  echo 'error: $(interpreter) is not installed; apt-get install python3, or set PYTHON=' >&2; exit 1; }; \
  test "$$('$(interpreter)' -ISc 'print(6 * 7)' 2>/dev/null)" = 42 || { \
  echo 'error: $(interpreter) is no Python 3; set PYTHON= to one of 3.10 to 3.13' >&2; exit 2; }; \
  '$(interpreter)' -B -m series

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help doctor configure fetch apply unapply status build demo check-model serve bundle test clean distclean export \
  check drop-when diff canary bisect upstream-branch test-tool test-model test-long test-each test-all \
  without upstream-tests capabilities pages evaluate lossless drafts clients stress stress-without soak two-nodes faults train mutate \
  transformers bench gpu-pack bundle-check locks

##@ use

help:  ## print this list
	@echo "make TARGET [VARIABLE=value]"
	@sed -n -e 's/^##@ \(.*\)/|\1/p' -e 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile \
	  | awk -F'|' '/^\|/ { printf "\n%s:\n", $$2; next } { printf "%-15s %s\n", $$1, $$2 }'
	@echo; echo "variables: BASE BUILD_DIR SOURCE SOURCES DEVICE KERNELS CUDA_ARCHS TORCH_INDEX"
	@echo "           KERNEL_CACHE PYTHON JOBS MODEL REV DROP FRESH PEER START REF VERSION POLICY OUT PATCH RUN LOCK HASH FLAGS CONCURRENCY OPEN_WEBUI (see docs/maintain/workflow.md#variables)"

doctor:  ## name each missing prerequisite and how to get it
	@$(SERIES) doctor $(COMMON) $(BUILD)

configure:  ## keep settings for later: make configure DEVICE=cpu SOURCES=folder
	@$(SERIES) configure $(COMMON) $(BUILD)

fetch:  ## get the pinned source and compare its sha256
	@$(SERIES) fetch $(COMMON) $(FETCH)

apply:  ## make or update the work tree: one commit a patch
	@$(SERIES) apply $(COMMON) $(FETCH)

unapply:  ## take the work tree back to the pinned source
	@$(SERIES) unapply $(COMMON) $(FETCH)

status:  ## say what the work tree holds, and the settings
	@$(SERIES) status $(COMMON)

build: apply  ## make the environment and the kernels
	@$(SERIES) build $(COMMON) $(BUILD) $(if $(JOBS),--jobs '$(JOBS)')

demo: build  ## from nothing to an answer about a picture
	@$(SERIES) demo $(COMMON) -- $(if $(MODEL),--model '$(MODEL)')

check-model:  ## look at the checkpoint in MODEL=folder before its weights are loaded (seconds)
	@$(SERIES) check-model $(COMMON) $(if $(MODEL),--model '$(MODEL)') $(if $(HASH),--hash)

SERVE = serve $(COMMON) $(if $(MODEL),--model '$(MODEL)') $(if $(FLAGS),--flags='$(subst ','\'',$(FLAGS))') \
  $(if $(CONCURRENCY),--concurrency '$(CONCURRENCY)')

# What cannot be served is refused before a build that takes minutes.
serve:  ## serve MODEL= with the model card's flags, on a machine that holds it
	@$(SERIES) $(SERVE) --dry-run > /dev/null
	@$(MAKE) --no-print-directory build
	@$(SERIES) $(SERVE)

bundle: build  ## the build in one folder, for machines without a network (docs/use/bundle.md)
	@$(SERIES) bundle $(COMMON) $(BUILD) $(if $(OUT),--out '$(OUT)')

test: test-tool test-model  ## test-tool and test-model

clean:  ## remove the work tree, unless it holds work of yours
	@$(SERIES) clean $(COMMON)

distclean:  ## remove everything under the build folder, unless it holds work of yours
	@$(SERIES) distclean $(COMMON)

##@ maintain

export:  ## write the commits of the work tree to patches/; DROP=names removes patches
	@$(SERIES) export $(COMMON) $(if $(DROP),--drop '$(DROP)')

check:  ## lint, exact apply, round trip, lock, true trailers; of every base unless BASE= is given
	@for base in $(CHECKED); do \
	  echo "$$base:"; $(SERIES) check $(COMMON) --base "$$base" $(FETCH) || exit 1; done

drop-when:  ## what each patch says about later releases, and whether it is true
	@$(SERIES) drop-when $(COMMON) $(FETCH)

diff:  ## what a change does to the series since REV=commit
	@$(SERIES) diff $(COMMON) $(FETCH) '$(or $(REV),HEAD)'

canary:  ## what REF does to each patch: a release, a folder, FOLDER@REV, a ref of vLLM
	@$(SERIES) canary $(COMMON) $(FETCH) '$(REF)' $(if $(VERSION),--version '$(VERSION)') \
	  $(if $(POLICY),--policy '$(POLICY)') $(if $(OUT),--out '$(OUT)')

bisect:  ## the commit of vLLM that broke PATCH: make bisect REF=clone@main PATCH=name
	@$(SERIES) bisect $(COMMON) $(FETCH) '$(REF)' '$(PATCH)' $(if $(VERSION),--version '$(VERSION)')

upstream-branch:  ## a branch and the text of a pull request for PATCH=, or for each fix; sends nothing
	@$(SERIES) upstream-branch $(COMMON) $(FETCH) $(if $(PATCH),--patch '$(PATCH)') \
	  $(if $(REF),--ref '$(REF)') $(if $(VERSION),--version '$(VERSION)') $(if $(RUN),--run)

test-tool:  ## tests, lint and types of the tool itself
	@$(SERIES) test-tool $(COMMON)
	@$(SERIES) pages $(COMMON) --check

test-model: build  ## run the tests of the series in the work tree
	@$(SERIES) test-model $(COMMON)

test-long: build  ## the tests of the tool and of the series that take long
	@$(SERIES) test-tool $(COMMON) -- -n auto -m 'long and not root' ci/tests/tool
	@$(SERIES) test-model $(COMMON) --long

test-each: build  ## run each patch's own tests on the tree after that patch
	@$(SERIES) test-each $(COMMON)

test-all: test test-long test-each  ## all that CI runs
	@$(SERIES) upstream-tests $(COMMON) --check
	@$(SERIES) capabilities $(COMMON) --check
	@$(SERIES) pages $(COMMON) --check

without: build  ## the tests of the patches on the pinned source, beside the last test-model
	@$(SERIES) without $(COMMON)

upstream-tests: build  ## vLLM's own tests of what the series changes, without and with it
	@$(SERIES) upstream-tests $(COMMON) $(if $(FRESH),--fresh)

capabilities:  ## the page of what works, from the reports of the last test-model
	@$(SERIES) capabilities $(COMMON)

pages:  ## write what is generated in the documents, from the data of runs
	@$(SERIES) pages $(COMMON)

evaluate: build  ## held-out accuracy and draft acceptance of the tiny model (3 minutes)
	@$(SERIES) evaluate $(COMMON)

lossless: build  ## check that drafts change no answer, option by option (15 minutes)
	@$(SERIES) lossless $(COMMON)

drafts: build  ## each option of a request with 1 to 4 drafts, against without (4 minutes)
	@$(SERIES) drafts $(COMMON)

clients: build  ## a served model by its clients; OPEN_WEBUI=program tests that front end, too (5 minutes)
	@$(SERIES) clients $(COMMON) $(if $(OPEN_WEBUI),--open-webui '$(OPEN_WEBUI)')

stress: build  ## 3000 random requests to servers; each answer is that of the request alone (8 minutes)
	@$(SERIES) stress $(COMMON)

stress-without: build  ## take fixes out, or those of PATCH=name,name; random requests must find each (half an hour)
	@$(SERIES) stress-without $(COMMON) $(if $(PATCH),--only '$(PATCH)') $(if $(FRESH),--fresh)

soak: build  ## 2000 random requests to one server with drafts; what it holds must not grow (8 minutes)
	@$(SERIES) soak $(COMMON)

two-nodes: build  ## the commands for two machines, in namespaces of this one; needs root (12 minutes)
	@$(SERIES) two-nodes $(COMMON)

faults: build  ## kill the tool 60 times and servers, fill the disk; as root (half an hour)
	@$(SERIES) faults $(COMMON) $(FETCH)

train: build  ## train the tiny model from nothing (15 minutes on an H100)
	@$(SERIES) train $(COMMON)

mutate: build  ## plant errors in the model; a named test must detect each (an hour)
	@$(SERIES) mutate $(COMMON) $(if $(FRESH),--fresh)

transformers: build  ## the same prompts and tokens under five releases of transformers (15 minutes)
	@$(SERIES) transformers $(COMMON) $(if $(LOCK),--lock)

bench: build  ## the series, and PEER= beside it, on one GPU of 80 GiB (half an hour)
	@$(SERIES) bench $(COMMON) -- $(if $(PEER),--peer '$(PEER)')

gpu-pack: apply  ## the CUDA build, or PEER=version, in parts for a GPU host without a network
	@$(SERIES) gpu-pack $(COMMON) $(FETCH) $(if $(PEER),--peer '$(PEER)') $(if $(START),--start) $(FLAGS)

bundle-check: build  ## pack twice and compare, install without a network and ask (10 minutes)
	@$(SERIES) bundle-check $(COMMON) $(call given,DEVICE,--device)

locks:  ## renew the locks in ci/locks from their .in files
	@$(SERIES) locks $(COMMON)
