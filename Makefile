# SPDX-License-Identifier: GPL-2.0
#
# Two commands for a fresh Debian machine: make demo, make test. For another Rust-enabled kernel
# tree: make KDIR=... ("make help" lists all targets).

top := $(CURDIR)
enter := $(top)/qemu/enter.sh

# By default the module is built for the running kernel.
KDIR ?= /lib/modules/$(shell uname -r)/build
BUILD ?= $(top)/build

.PHONY: modules
modules:
	@test -e $(KDIR)/Makefile || { echo "no kernel tree at $(KDIR): name one with KDIR=, or see 'make help'"; exit 1; }
	@test -e $(KDIR)/rust/libkernel.rmeta || { echo "$(KDIR) is not prepared for Rust modules: it needs CONFIG_RUST=y and 'make modules_prepare' (see README.md)"; exit 1; }
	$(MAKE) -C $(KDIR) M=$(top) MO=$(BUILD) $(KBUILD_ARGS) modules

.PHONY: help
help:
	@echo "On a bare Debian 12 or 13, as root:"
	@echo "  make demo      set everything up, boot a stock kernel in QEMU, show the module at work"
	@echo "  make test      the same set-up, then all tests: on the host and in the guest"
	@echo "  make test-debug  build a debug kernel (once, 10 minutes), run all guest tests in it"
	@echo "  make fuzz      random calls until a test fails, or for MINUTES=N; SEED=N, DEBUG=1"
	@echo "  make mutants   breaks each property once: its test has to fail; ONLY=GLOB"
	@echo "  make soak      a mixed load for MINUTES=10, with SEED=N, in the debug kernel with DEBUG=1"
	@echo "  make fuzz-core MINUTES=n  the allocator under a fuzzer for n minutes, on the host"
	@echo "  make bench     the allocator beside other ones, on the host and in a guest (docs/benchmarks.md)"
	@echo "  make shell     the same set-up, then a prompt in a guest with the module loaded"
	@echo "  make setup     only the set-up (everything goes to .cache)"
	@echo "  make check     rustfmt, clippy, checkpatch and lints"
	@echo "With your own Rust-enabled kernel:"
	@echo "  make KDIR=DIR                        build/rust_buddy.ko for the kernel built in DIR"
	@echo "  make test KDIR=DIR KERNEL=bzImage    all tests with that kernel; needs no root, and"
	@echo "                                       cargo, qemu and virtme-ng installed"
	@echo "  make install KDIR=DIR                module, header, udev rule and examples"
	@echo "  make clean / distclean               remove build results / and all downloads"
	@echo "Variables: MIRROR=URL (Debian archive), RB_CACHE=DIR, CI=true (no terminal)"

# With KERNEL= the caller provides kernel, tree and tools. Otherwise they are set up.
ifeq ($(KERNEL),)
own := 0
else
own := 1
endif

.PHONY: setup demo test test-debug mutants fuzz soak fuzz-core bench shell check
setup:
	@qemu/setup.sh
demo:
	@qemu/demo.sh
shell:
	@qemu/shell.sh
check:
	@qemu/check.sh
test-debug:
	@qemu/test-debug.sh
mutants:
	@qemu/mutants.sh
# Runs until it fails, unless MINUTES= is given: make does not export the default below.
fuzz:
	@qemu/fuzz.sh
MINUTES ?= 10
soak:
	@qemu/soak.sh "$(MINUTES)" "$(SEED)" "$(DEBUG)"
fuzz-core: setup
	@qemu/fuzz-core.sh minutes $(MINUTES)
bench: setup
	@qemu/bench.sh
test:
ifeq ($(own),1)
	@KERNEL=$(abspath $(KERNEL)) KDIR=$(abspath $(KDIR)) qemu/test.sh
else
	@qemu/test.sh
endif

DESTDIR ?=
PREFIX ?= /usr
.PHONY: install
install: modules
	$(MAKE) -C $(KDIR) M=$(top) MO=$(BUILD) $(KBUILD_ARGS) INSTALL_MOD_PATH=$(DESTDIR) modules_install
	install -D -m 644 src/uapi/linux/rust_buddy.h $(DESTDIR)$(PREFIX)/include/linux/rust_buddy.h
	install -D -m 644 dist/60-rust_buddy.rules $(DESTDIR)$(PREFIX)/lib/udev/rules.d/60-rust_buddy.rules
	install -D -m 644 dist/sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/rust_buddy.conf
	install -D -m 644 dist/modules-load.conf $(DESTDIR)$(PREFIX)/share/doc/rust_buddy/modules-load.conf
	install -D -m 644 dist/modprobe.conf $(DESTDIR)$(PREFIX)/share/doc/rust_buddy/modprobe.conf
	@echo "To make the group: systemd-sysusers, or groupadd --system rust_buddy; then udevadm control --reload"
	@echo "To load at boot: copy the examples in $(DESTDIR)$(PREFIX)/share/doc/rust_buddy"

.PHONY: clean distclean
clean:
	rm -rf $(BUILD) .cache/build .cache/build-debug .cache/out
distclean: clean
	rm -rf --one-file-system .cache
