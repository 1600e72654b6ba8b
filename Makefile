# Every target works on a fresh Debian machine with git, make and some Python; `make help` lists them.
SHELL := /bin/sh
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
TESTS ?=

.PHONY: help setup demo test test-vm lint format generate shim image image-lock servers cluster-up cluster-down cluster-shell bench simulate chaos lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## a Python that fits and .venv from the lock file (instant when nothing changed)
	@tools/bootstrap

demo: setup shim ## two pods on a real macvlan segment through the real shim and actors, here, in seconds
	@.venv/bin/spiderpoolctl demo

test: ## everything that proves the project, phase by phase; TESTS='rules lint' runs only those
	@tools/bootstrap --timed
	@$(PYTHON) -m tests.phases $(TESTS)

test-vm: setup shim ## tests on the newest kernel in a QEMU guest, with SR-IOV NICs; TESTS='tests/node/test_links.py -k traffic' any others
	@$(PYTHON) -m tests.vm test $(TESTS)

lint: setup ## ruff, mypy, import-linter and the drift of generated files
	@$(PYTHON) -m tests.phases lint

format: setup ## rewrite the sources in the house's layout
	@.venv/bin/ruff check --quiet --fix . || true
	@.venv/bin/ruff format .

generate: setup ## the chart's CRDs from the Structs in api/, its values.schema.json, docs/metrics.md
	@$(PYTHON) -m api.crd --output helm/spiderpool/crds
	@$(PYTHON) -m tools.chart.schema
	@$(PYTHON) -m telemetry.docs --output docs/metrics.md

shim: setup ## the C executable that kubelet starts, for amd64 and arm64, in build/cni
	@$(PYTHON) -m cni.shim.build --output build/cni

image: setup ## the container image in build/spiderpool-<arch>.oci.tar, without a container engine; ARCH=amd64 or arm64
	@$(PYTHON) -m tools.image build $(if $(ARCH),--arch $(ARCH))

image-lock: setup ## pin the newest Debian packages of the image
	@$(PYTHON) -m tools.image lock

servers: setup ## build or find etcd, Kubernetes, containerd, Jaeger, the CNI plugins, helm and kubectl (minutes once, then instant)
	@$(PYTHON) -m tests.servers

cluster-up: setup ## a real cluster here: control plane, NODES=2 nodes, CNI=none|bridge|ref, router, client; ten seconds; needs root
	@$(PYTHON) -m tests.cluster up --nodes $(or $(NODES),2) --cni $(or $(CNI),none)

cluster-down: setup ## take it down: no process, mount, namespace or cgroup stays
	@$(PYTHON) -m tests.cluster down

cluster-shell: setup ## a shell in it with kubectl and helm; CMD='kubectl get nodes' runs one command
	@$(PYTHON) -m tests.cluster shell $(if $(CMD),'$(subst ','\'',$(value CMD))')

bench: setup shim servers ## figures of this machine, never asserted; BENCH=core: allocation; BENCH=control: applications and admission; BENCH=node: links, several NICs, detection; BENCH=simulate: 100,000 simulated pods; BENCH=cluster: a real kubelet, against the reference CNI
	@$(PYTHON) -m bench $(BENCH)

simulate: setup ## random worlds of the real actors on a virtual clock, with faults and the invariants; SEEDS=300 FIRST=1 PLAN='{"seed":7}'
	@$(PYTHON) -m tests.simulation --seeds $(or $(SEEDS),300) --first $(or $(FIRST),1) $(if $(PLAN),--plan '$(PLAN)')

chaos: setup shim servers ## random faults on a cluster under pods that come and go, then an audit; SECONDS=600 SEED=...
	@$(PYTHON) -m tests.cluster.chaos --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

lock: ## pin what pyproject.toml and requirements/*.in ask for, with hashes
	@tools/lock

clean: ## remove what was built in the checkout (the cache of servers stays)
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
