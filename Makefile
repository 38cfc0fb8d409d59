# make run    build, and meter this host: live flow records on the terminal
# make test-kernels   the acceptance test on other kernels, with cgroup v2, hybrid and v1, and in the DaemonSet's container, in QEMU
# make test-pods   the tests of containers in full; make test-containers-v2: in QEMU, with cgroup v2 alone
# make test-kube   names by a real kube-apiserver, which is built first (minutes)
# make test-collectors   goflow2 and ClickHouse with the example of deploy/collectors, both fetched; every collector at 20 000 records/s for a minute
# make soak   a collector that is killed at random for ten minutes
# make soak-host   a day's churn of flows, processes and containers in half an hour: nothing may grow
# make test   install what the tests need (Debian packages, if root) and run them all

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X main.version=$(VERSION)
# Without it gRPC brings a debugging page (golang.org/x/net/trace), and that html/template: the linker keeps 4 MB more.
TAGS     := grpcnotrace
# A number of inputs, not a time: with a time, go test now and then fails at its end ("context deadline exceeded").
FUZZTIME ?= 50000x

# What the tests talk to.
TEST_PACKAGES := nfdump bpftool iptables nftables libfixbuf-tools tshark tcpdump iproute2 busybox-static netcat-openbsd python3-zmq prometheus systemd procps curl gcc libc6-dev containerd runc containernetworking-plugins docker.io podman pmacct openssl
# What turns bpf/sockflow.bpf.c into the committed object.
BPF_PACKAGES  := clang-14 llvm-14 libbpf-dev

export CGO_ENABLED ?= 0
export DEBIAN_FRONTEND := noninteractive

.PHONY: cross image manuals dist run build test soak soak-host test-pods test-containers-v2 test-kernels test-kube test-collectors harness lint generate fuzz bench clean packages bpf-packages

run: build
	./bin/exporter

build:
	$(GO) build -tags '$(TAGS)' -trimpath -ldflags '$(LDFLAGS)' -o bin/exporter ./cmd/exporter
	cp bin/exporter bin/sockflow

# For other machines, in dist/: static programs, images, packages. Nothing of it needs a registry.
ARCHES ?= amd64 arm64
NFPM   ?= $(GO) run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.41.1
IMAGE  ?= docker.io/library/sockflow:$(VERSION)

cross:
	mkdir -p dist
	for a in $(ARCHES); do GOARCH=$$a $(GO) build -tags '$(TAGS)' -trimpath -ldflags '$(LDFLAGS)' -o dist/sockflow-$$a ./cmd/exporter || exit 1; done

image: cross
	for a in $(ARCHES); do deploy/image/build.sh dist/sockflow-$$a $$a $(IMAGE) dist/sockflow-$$a.tar || exit 1; done

# Man pages and completion are made of the flags.
manuals: build
	mkdir -p dist/completion
	bin/sockflow man dist/man
	bin/sockflow completion bash >dist/completion/sockflow.bash
	bin/sockflow completion zsh >dist/completion/_sockflow
	bin/sockflow completion fish >dist/completion/sockflow.fish

dist: cross manuals
	for a in $(ARCHES); do for p in deb rpm; do \
		DIST=dist ARCH=$$a VERSION='$(VERSION)' $(NFPM) package --config deploy/packaging/nfpm.yaml --packager $$p --target dist/ || exit 1; done; done

# install needs root and does nothing when every package is there.
define install
	@missing=$$(for p in $(1); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" != 0 ]; then echo "not root: tests that need" $$missing "will be skipped"; \
	else apt-get -q update && apt-get -q install -y --no-install-recommends $$missing; fi
endef

packages:
	$(call install,$(TEST_PACKAGES))

bpf-packages:
	$(call install,$(BPF_PACKAGES))

# The end-to-end tests watch the whole host: they have it to themselves.
test: packages
	@if [ "$$(id -u)" = 0 ]; then export REQUIRE_ROOT=1; fi; export CGO_ENABLED=1; failed=0; \
	$(GO) test -count=1 -race -timeout 10m $$($(GO) list ./... | grep -v /cmd/exporter$$) || failed=1; \
	$(GO) test -count=1 -race -timeout 45m ./cmd/exporter || failed=1; \
	exit $$failed

# In full: 200 pods, five a second; a runtime that hangs for a minute; 170 containers of each of three runtimes over a pool of addresses. Smaller ones are among the tests.
test-pods: packages
	SOCKFLOW_PODS=200 SOCKFLOW_HANG=60 SOCKFLOW_POOL=170 REQUIRE_ROOT=1 $(GO) test -count=1 -v -timeout 60m -run '^(TestPods|TestHungRuntime|TestAddressPool)$$' ./cmd/exporter

# Captures through replay and every transport to every collector, record by record. make test runs it too.
harness: packages
	@if [ "$$(id -u)" = 0 ]; then export REQUIRE_ROOT=1; fi; $(GO) test -count=1 -timeout 10m -run 'TestCaptures|TestHarness' ./cmd/exporter

KERNELS ?= 5.10 6.1 6.12 7

test-kernels:
	testdata/kernels/run.sh $(KERNELS)
	CGROUPS=hybrid testdata/kernels/run.sh 6.12
	CGROUPS=v1 testdata/kernels/run.sh 6.12
	CONTAINERS=1 testdata/kernels/run.sh 6.12
	NETWORKS=1 testdata/kernels/run.sh $(filter-out 5.10,$(KERNELS))

# Containers and pods where cgroup v2 is all there is.
test-containers-v2:
	CONTAINERS=1 TEST_RUN='^TestContainerd$$/^bookworm$$' testdata/kernels/run.sh 6.12

# Where the API server is built, once.
KUBE_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sockflow-kube

test-kube:
	$(call install,etcd-server openssl iproute2)
	nice testdata/kube/build.sh $(KUBE_DIR)
	SOCKFLOW_TEST_APISERVER=$(KUBE_DIR)/kube-apiserver $(GO) test -count=1 -timeout 15m -run '^TestRealKube$$' -v ./cmd/exporter

# Where goflow2 and ClickHouse's engine (chDB, by npm) are put, 600 MB.
COLLECTORS_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sockflow-collectors

test-collectors:
	mkdir -p $(COLLECTORS_DIR)
	GOBIN=$(abspath $(COLLECTORS_DIR)) $(GO) install github.com/netsampler/goflow2/v2/cmd/goflow2@$$($(GO) list -m -f '{{.Version}}' github.com/netsampler/goflow2/v2)
	npm install --prefix $(COLLECTORS_DIR) --no-save --ignore-scripts chdb@3.4.0
	SOCKFLOW_TEST_COLLECTORS=$(abspath $(COLLECTORS_DIR)) SOCKFLOW_LOAD=60s $(GO) test -count=1 -v -timeout 60m -run '^(TestClickHouse|TestBurst)$$' ./cmd/exporter

lint:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then echo "gofmt would change:" $$unformatted; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

generate: bpf-packages
	$(GO) generate ./bpf

# A collector that is killed at random for ten minutes under 20 000 records/s, over TCP and TLS at the same time.
SOAK ?= 10m

soak:
	cd ipfix && SOCKFLOW_SOAK=$(SOAK) $(GO) test -count=1 -timeout 2h -v -run '^TestCollectorDies$$' .

soak-host:
	$(call install,bpftool curl iproute2)
	bench/soak.sh

# Every fuzz target, briefly. Minimizing would take up to a minute for every new input.
fuzz:
	@set -e; for p in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
			echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$p; \
		done; \
	done

bench:
	$(GO) test -run '^$$' -bench . -benchtime 1s ./flowcache ./templates ./ipfix ./sockdiag

clean:
	rm -rf bin dist
