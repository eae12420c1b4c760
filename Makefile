# Two commands tell everything: `make quickstart` and `make test`. Both run as root on Debian 12 or later, with Rust 1.95.

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
CACHE := $(or $(THINSNAP_CACHE),/var/cache/thinsnap-tests)
PREFIX ?= /usr/local
DESTDIR ?=

# What each part needs, as Debian names it; only what is missing is installed.
BUILD_PACKAGES = gcc libc6-dev libclang-dev libdevmapper-dev pkg-config
RUN_PACKAGES = e2fsprogs mount util-linux xfsprogs
QUICKSTART_PACKAGES = $(RUN_PACKAGES) debootstrap procps python3 skopeo umoci
FUZZ_PACKAGES = g++ util-linux
TEST_PACKAGES = $(QUICKSTART_PACKAGES) $(FUZZ_PACKAGES) attr busybox-static fio libcap2-bin libseccomp2 thin-provisioning-tools
VM_PACKAGES = attr busybox-static dmsetup e2fsprogs python3 qemu-system-x86 thin-provisioning-tools zstd
BENCH_PACKAGES = $(RUN_PACKAGES) btrfs-progs fio python3 qemu-system-common qemu-utils

.PHONY: build quickstart chaos test test-kernel test-migrate power-cut-vm crash-explore mutation-check lint fmt fuzz bench bench-quick bench-versus bench-compare bench-record criterion criterion-compare criterion-record fill-cycles deny install clean

build:
	@tests/install-missing.sh $(BUILD_PACKAGES)
	$(CARGO) build --release

quickstart: build
	@tests/install-missing.sh $(QUICKSTART_PACKAGES)
	@docs/quickstart.sh $(TARGET)/release/thinsnap

# The whole truth: format, lints, floors, laws, models, real containerd. What it leaves behind is a failure.
# With the output of tests that passed: one that could not run says SKIPPED there, and why.
test: lint
	@tests/install-missing.sh $(TEST_PACKAGES) $(VM_PACKAGES)
	@tests/fetch-deb.sh trixie thin-provisioning-tools $(CACHE)/thin-tools-1.1
	@tests/leftovers.sh $(CARGO) test --workspace --no-fail-fast -- --show-output
	@tests/leftovers.sh tests/vm/test_kernel.py --quick
	@tests/leftovers.sh tests/fuzz/run.sh 10
	@tests/mutation-check.sh

# Power cuts at every point of random stories, a million different disks judged; `make test` does a tenth of that.
EXPLORE_STATES ?= 1000000
crash-explore:
	@tests/install-missing.sh $(BUILD_PACKAGES) thin-provisioning-tools
	@tests/fetch-deb.sh trixie thin-provisioning-tools $(CACHE)/thin-tools-1.1
	THINSNAP_EXPLORE_STATES=$(EXPLORE_STATES) $(CARGO) test --workspace --test explorer power_cut -- --nocapture

# Puts one defect after the other into a test build: each must be noticed. Prints who noticed what.
mutation-check:
	@tests/install-missing.sh $(BUILD_PACKAGES)
	tests/mutation-check.sh

# The guest of a virtual machine has no network: what tests in it fetch is there before.
define fetch-containerd
	@tests/fetch-deb.sh bookworm runc $(CACHE)/runc-bookworm
	@for suite in bookworm trixie sid; do tests/fetch-deb.sh $$suite containerd $(CACHE)/containerd-$$suite || exit; done
endef

# What needs a kernel with dm-thin: on this host's own if it has that, else in a virtual machine with each of Debian's; about
# half an hour each without KVM. KERNEL="--kernel 6.1" takes one of them, KERNEL="--kernel user-mode" a newer one that is
# fast; THINSNAP_HANDOVERS=1000 is the long run. `make test` does a short list on the fast one.
test-kernel:
	@tests/install-missing.sh $(TEST_PACKAGES) $(VM_PACKAGES)
	@tests/fetch-deb.sh trixie thin-provisioning-tools $(CACHE)/thin-tools-1.1
	$(fetch-containerd)
	@tests/leftovers.sh tests/vm/test_kernel.py $(KERNEL)

# A containerd in a virtual machine is moved from its devmapper snapshotter to thinsnap, and goes on with what it had.
test-migrate:
	@tests/install-missing.sh $(BUILD_PACKAGES) $(RUN_PACKAGES) $(VM_PACKAGES) umoci skopeo busybox
	$(fetch-containerd)
	cargo build
	@for suite in bookworm trixie sid; do THINSNAP_CACHE=$(CACHE) tests/leftovers.sh tests/vm/run.py --kernel 6.12 -- \
		sh tests/vm/migrate.sh $$suite $(TARGET)/debug/thinsnap || exit; done

# The power of a virtual machine is cut while containers in it write; every promise made before is judged after each cut.
POWER_CUTS ?= 20
power-cut-vm: build
	@tests/install-missing.sh $(RUN_PACKAGES) $(VM_PACKAGES)
	@tests/fetch-deb.sh trixie thin-provisioning-tools $(CACHE)/thin-tools-1.1
	@tests/leftovers.sh tests/vm/power_cut.py --engine embedded --rounds $(POWER_CUTS) --thinsnap $(TARGET)/release/thinsnap
	@tests/leftovers.sh tests/vm/power_cut.py --engine kernel --rounds $(POWER_CUTS) --thinsnap $(TARGET)/release/thinsnap
	@tests/leftovers.sh tests/vm/power_cut.py --engine both --rounds $(POWER_CUTS) --thinsnap $(TARGET)/release/thinsnap

# Tests may unwrap; they share support modules of which each program uses a part.
TEST_LINTS = -A clippy::unwrap_used -A dead_code -A unreachable_pub -A unused_imports
lint:
	@tests/install-missing.sh $(BUILD_PACKAGES)
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --lib --bins --examples -- -D warnings
	$(CARGO) clippy --workspace --tests --benches -- -D warnings $(TEST_LINTS)

# A small pool filled to its end 200 times under eight file systems; FILL_CYCLES and FILL_SEED for more or others.
fill-cycles:
	@tests/install-missing.sh $(TEST_PACKAGES)
	FILL_CYCLES=$${FILL_CYCLES:-200} $(CARGO) test --release -p thinsnap-pool --test full cycles -- --nocapture

fmt:
	$(CARGO) fmt --all

# What strangers can send, tried for a long time: FUZZ_SECONDS for each of the targets in FUZZ_TARGETS (all).
FUZZ_SECONDS ?= 600
fuzz:
	@tests/install-missing.sh $(BUILD_PACKAGES) $(FUZZ_PACKAGES)
	@tests/leftovers.sh tests/fuzz/run.sh $(FUZZ_SECONDS) $(FUZZ_TARGETS)

# Kills the pool-host 200 times under containers whose every byte is checked, and 67 times together with the service; four
# minutes. `make test` does a tenth of it.
chaos:
	@tests/install-missing.sh $(TEST_PACKAGES)
	THINSNAP_CHAOS_KILLS=$(or $(KILLS),200) tests/leftovers.sh $(CARGO) test --test chaos -- --show-output --test-threads=1

# Measures thinsnap next to its rivals; writes docs/benchmarks.md and .html, and benches/raw. Within 60 minutes, bench-quick in
# 4 (without bench-versus); BENCH="--only first-write" takes some of it. Interrupted, the same command goes on.
BENCH ?=
bench: build
	@tests/install-missing.sh $(BENCH_PACKAGES)
	benches/run.py --thinsnap $(TARGET)/release/thinsnap $(BENCH)

bench-quick: build
	@tests/install-missing.sh $(BENCH_PACKAGES)
	benches/run.py --thinsnap $(TARGET)/release/thinsnap --quick $(BENCH)

# In a virtual machine: a containerd with its own devmapper snapshotter and thinsnap; fio, and containers' writes, on dm-thin
# and thinsnap over FUSE and over ublk; 25 minutes.
bench-versus: build
	@tests/install-missing.sh $(BENCH_PACKAGES) $(VM_PACKAGES) umoci skopeo
	benches/run.py --thinsnap $(TARGET)/release/thinsnap --only versus,versus-device,versus-containers $(BENCH)

# The same beside the last recorded figures of a quick run, as ratios, five minutes with Criterion's; bench-record records the
# new ones instead.
define run-bench-quick
	@tests/install-missing.sh $(BENCH_PACKAGES)
	benches/run.py --thinsnap $(TARGET)/release/thinsnap --quick --out $(TARGET)/bench $(BENCH)
endef
bench-compare: build
	$(run-bench-quick)
	benches/run.py --out $(TARGET)/bench --compare benches/raw/quick
	@$(MAKE) --no-print-directory criterion-compare

bench-record: build
	$(run-bench-quick)
	cp $(TARGET)/bench/raw/*.json benches/raw/quick/

# Costs of the metadata and of the engine alone (pool/benches), a minute: measured, set beside the recorded figures
# (CRITERION="--fail-above 1.5" fails above that ratio), recorded.
CRITERION ?=
criterion:
	@tests/install-missing.sh $(BUILD_PACKAGES) python3
	$(CARGO) bench -p thinsnap-pool --bench metadata --bench engine

criterion-compare: criterion
	benches/criterion.py --target $(TARGET) $(CRITERION)

criterion-record: criterion
	benches/criterion.py --target $(TARGET) --record

# Licences and advisories of the dependencies; needs cargo-deny.
deny:
	$(CARGO) deny check

# A configuration that is there is kept. With systemd: systemctl daemon-reload && systemctl enable --now thinsnap.socket thinsnap
install:
	install -D -m 0755 $(TARGET)/release/thinsnap $(DESTDIR)$(PREFIX)/bin/thinsnap
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system dist/thinsnap.service dist/thinsnap.socket
	test -e $(DESTDIR)/etc/thinsnap/thinsnap.toml || install -D -m 0644 dist/thinsnap.toml $(DESTDIR)/etc/thinsnap/thinsnap.toml

clean:
	$(CARGO) clean
