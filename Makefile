# atomic-rs. Everything a target needs it sets up itself; "make deps" is quiet when nothing is missing.

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo

# To build: libostree, libselinux (bindgen wants libclang). To run: skopeo with its policy and
# registries files, a runtime. To test: a registry, podman to compare with, nspawn, D-Bus, static busybox.
PACKAGES = build-essential pkg-config libostree-dev libselinux1-dev libclang-dev \
	skopeo golang-github-containers-image golang-github-containers-common runc crun ostree \
	docker-registry docker.io podman proot libfakechroot xz-utils bzip2 adduser apache2-utils systemd systemd-container dbus dbus-user-session uidmap \
	busybox-static attr umoci erofs-utils zstd rpm dnf createrepo-c lintian libcap2-bin selinux-policy-default curl gnupg openssl git git-annex jq procps python3 time xfsprogs e2fsprogs qemu-utils util-linux

.PHONY: all deps demo test torture fuzz deny bench install man clean

all: deps
	$(CARGO) build --release

deps:
	@missing=; for package in $(PACKAGES); do \
		dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
		echo "installing:$$missing"; \
		if [ "$$(id -u)" != 0 ]; then echo "run \"make deps\" as root" >&2; exit 1; fi; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null || exit 1; \
		systemctl disable --now docker-registry docker.service docker.socket containerd >/dev/null 2>&1 || true; \
	fi
	@command -v $(CARGO) >/dev/null || { \
		echo "Rust is missing. Install it with rustup (https://rustup.rs), at least version 1.92, and run again." >&2; exit 1; }

# The main job on a throwaway systemd host: from pull to rollback, with real output.
demo: deps
	@$(CARGO) build --quiet --bin atomic-rs --example demo
	@./target/debug/examples/demo

test: deps
	$(CARGO) fmt --check
	$(CARGO) clippy --quiet --all-targets -- -D warnings
	if command -v cargo-deny >/dev/null; then $(CARGO) deny --offline --log-level error check bans licenses sources; fi
	$(CARGO) test --no-fail-fast

# The long forms of what "make test" tries in short: every fault point of every verb, a thousand kills and hundreds of
# power cuts at random moments, disks of all sizes, crowds and races for minutes, fuzzing for ten: hours. Prints the
# tables. TORTURE="crash crowd" tries only these; ATOMIC_RS_SEED repeats a run.
TORTURE ?= adversity crash crowd faults fuzz hostile identity power race
torture: deps
	ATOMIC_RS_TORTURE=1 $(CARGO) test --no-fail-fast $(TORTURE:%=--test %) -- --nocapture

# The targets of tests/fuzz.rs with libFuzzer, which is guided by what it reaches: ten minutes each, from the corpus in
# tests/corpus. Wants cargo-fuzz ("cargo install cargo-fuzz").
FUZZ_SECONDS ?= 600
fuzz: deps
	cd fuzz && cargo fuzz build --fuzz-dir . -s none any
	for target in tests/corpus/*; do \
		mkdir -p target/fuzz/$${target##*/} && \
		ATOMIC_RS_FUZZ=$${target##*/} fuzz/target/*/release/any -max_total_time=$(FUZZ_SECONDS) \
			-artifact_prefix=target/fuzz/ target/fuzz/$${target##*/} $$target || exit 1; \
	done

# What make test leaves out because it needs the list of advisories from the network.
deny:
	$(CARGO) deny check

bench: deps
	$(CARGO) build --quiet --release
	$(CARGO) bench --quiet --bench speed
	$(CARGO) bench --quiet --bench micro
	./benches/startup.sh
	./benches/memory.sh
	$(CARGO) build --quiet --bin atomic-rs --example outage
	./target/debug/examples/outage

# Manual pages and completions come from the definition of the command line.
man:
	ATOMIC_RS_BLESS=1 $(CARGO) test --quiet --test manuals

install: deps
	$(CARGO) build --release
	install -Dm755 target/release/atomic-rs $(DESTDIR)$(PREFIX)/bin/atomic-rs
	for page in man/*.1; do install -Dm644 $$page $(DESTDIR)$(PREFIX)/share/man/man1/$${page##*/}; done
	for unit in systemd/system/* systemd/user/*; do \
		sed 's|@BINDIR@|$(PREFIX)/bin|' $$unit | install -Dm644 /dev/stdin $(DESTDIR)$(PREFIX)/lib/$$unit; done
	for template in templates/*.tera; do install -Dm644 $$template $(DESTDIR)$(PREFIX)/share/atomic-rs/templates/$${template##*/}; done
	mkdir -p $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	target/release/atomic-rs completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/atomic-rs
	target/release/atomic-rs completion zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_atomic-rs
	target/release/atomic-rs completion fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/atomic-rs.fish

clean:
	$(CARGO) clean
