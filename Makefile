# Every target is one script in scripts/; they can be run by themselves as well.

.DEFAULT_GOAL := help
.PHONY: bench-tools help setup build install test lint demo bench crash coverage fuzz interop clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## install what is missing: Node, the wasm32 target, wasm-pack, Debian packages
	@scripts/setup

build: setup ## build everything into build/; commands are in build/bin/
	@scripts/build

install: build ## install commands, manual pages and completions: PREFIX=/usr/local, below DESTDIR= if that is given
	@PREFIX="$(or $(PREFIX),/usr/local)" DESTDIR="$(DESTDIR)" scripts/install

test: ## run every test suite
	@scripts/test

lint: ## check format, types and style of all sources
	@scripts/lint

demo: build ## serve a real VHD, put a file system on it, and prove that other programs read it back
	@scripts/demo

bench: build ## compare with other servers on this machine
	@scripts/bench

bench-tools: build ## compare vhd-check and vhd-coalesce with others on this machine
	@scripts/bench-tools

crash: setup ## cut the power and fail operations at random, for SECONDS_TO_RUN=300
	@scripts/crash

interop: ## compare with the original in both directions, where it is installed: BLKTAP=<prefix>
	@scripts/interop

coverage: setup ## line coverage of the engine by its own tests, with cargo-tarpaulin
	@scripts/coverage

fuzz: setup ## run the engine's fuzzers, SECONDS_EACH=30 for each
	@scripts/fuzz

clean: ## remove what was built in this checkout
	rm -rf build target
