# SPDX-License-Identifier: Apache-2.0
#
# Needs Go and npm; `test`, `test-cluster`, `cluster-up`, `bench` and `demo` also Debian and root, because they start real
# database servers and a real control plane, and `test` gcc, because of the race detector. Everything else is fetched,
# pinned and cached.

# Versions are pinned here and nowhere else. `go run` builds a tool once and keeps it in Go's build cache, so nothing is
# installed; golangci-lint takes two to three minutes the first time and about a second afterwards.
GOLANGCI_LINT := go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

# Which server `make demo` uses: postgres, mariadb or mysql.
ENGINE ?= postgres

# Test packages that run at the same time. Most of them start database servers: more than two starve each other on two
# cores and run into time limits that mean something else.
TEST_PARALLEL ?= 2
# For the whole of one package, first download of a server included.
TEST_TIMEOUT ?= 45m
# More flags for go test, for example: make test TEST_FLAGS='-run TestProvision -v'
TEST_FLAGS ?=
# The programs, and the tests on real servers, which are a module of their own (go.work).
PACKAGES := ./... ./test/...
TEST_PACKAGES ?= $(PACKAGES)

IMAGE ?= example.com/dbconnector/dbconnector:0.1.0
# What follows a colon behind the last slash: the colon of host:5000/name is another one.
TAG = $(word 2,$(subst :, ,$(notdir $(IMAGE))))
PLATFORMS ?= linux/amd64,linux/arm64
# An archive, because an image for several platforms fits in no local Docker store. To publish: IMAGE_OUTPUT=type=registry
IMAGE_OUTPUT ?= type=oci,dest=bin/dbconnector-image.tar

# What `make build` makes says this of itself; where git knows nothing, what Go knows.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
LDFLAGS = -s -w $(if $(VERSION),-X dbconnector/pkg/version.version=$(VERSION))

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

.PHONY: build
build: ## Build bin/dbconnector-init and -rotate for this machine
	CGO_ENABLED=0 GOWORK=off go build -trimpath -ldflags '$(LDFLAGS)' -o bin/dbconnector-init ./cmd/init
	CGO_ENABLED=0 GOWORK=off go build -trimpath -ldflags '$(LDFLAGS)' -o bin/dbconnector-rotate ./cmd/rotate

.PHONY: servers
servers: ## Fetch the servers that tests, benchmarks and demo need (cached; the others do it by themselves)
	@go run ./test/cmd/fetch all

.PHONY: test
test: cc $(if $(filter ./...,$(TEST_PACKAGES)),servers) ## Run all tests, on real servers, with the race detector
	@# Not from Go's cache, which does not see the sources of the programs that most of the tests build and run.
	go test -race -count=1 -p $(TEST_PARALLEL) -timeout $(TEST_TIMEOUT) $(TEST_FLAGS) $(TEST_PACKAGES)

.PHONY: test-cluster
test-cluster: ## Run the tests in real pods, on a Kubernetes node of its own
	go test -timeout $(TEST_TIMEOUT) -count=1 -v $(TEST_FLAGS) ./test/pods

.PHONY: cluster-up
cluster-up: ## Start that node for yourself, until ^C
	@go build -o bin/cluster-up ./test/cmd/cluster-up
	@exec bin/cluster-up # go run would not hand SIGTERM on, and leave all behind

.PHONY: bench
bench: ## Measure what docs/benchmarks.md states, and print it as one table
	@go run ./test/cmd/bench

.PHONY: demo
demo: ## Show it at work on a server of its own; ENGINE=postgres (default), mariadb or mysql
	@CGO_ENABLED=0 go run -trimpath ./test/cmd/demo -engine $(ENGINE)

.PHONY: matrix
matrix: ## Kill a rotation at every question, and write docs/crash-matrix.md
	go test ./test/rotate -timeout $(TEST_TIMEOUT) -run '^TestCrashMatrix$$' -count=1 -update

.PHONY: lint
lint: ## Run the linters of .golangci.yml
	$(GOLANGCI_LINT) run $(PACKAGES)

.PHONY: fmt
fmt: ## Format the Go code (gofumpt, imports in groups)
	$(GOLANGCI_LINT) fmt

.PHONY: ci
ci: ## What must hold before a merge: format, vet, lint, test
	$(GOLANGCI_LINT) config verify
	$(GOLANGCI_LINT) fmt --diff
	GOWORK=off go mod tidy -diff
	cd test && GOWORK=off go mod tidy -diff
	go vet $(PACKAGES)
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory test

.PHONY: image
image: ## Build the image for PLATFORMS (needs docker buildx)
	@mkdir -p bin
	docker buildx build --platform $(PLATFORMS) --output $(IMAGE_OUTPUT) --tag $(IMAGE) \
	  --build-arg VERSION=$(TAG) --build-arg REVISION=$$(git rev-parse HEAD) .

.PHONY: clean
clean: ## Remove what was built here (downloads stay cached outside the checkout)
	rm -rf bin

# Without this, go test says `-race requires cgo`, which names neither the cause nor the cure.
.PHONY: cc
cc:
	@command -v "$$(go env CC)" >/dev/null || { echo "the race detector needs a C compiler: apt-get install gcc libc6-dev" >&2; exit 1; }
