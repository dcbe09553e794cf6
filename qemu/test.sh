#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# All tests: set-up, build, the host's tests, then the guest's. The last line is "N passed, N
# failed, N skipped", and the exit code is not zero if anything failed.
#
# With KERNEL= and KDIR= nothing is set up and no root is needed. Tests that need features which
# that kernel lacks are skipped and named.
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"
. "$here/results.sh"
cd "$RB_TOP" || exit 1
mkdir -p "$RB_CACHE"

if [ -n "${KERNEL:-}" ]; then
	# Uses the caller's tools, and shows the guest's KTAP.
	export KDIR RB_INSIDE=1
	quiet=
	for tool in vng qemu-system-x86_64 cargo; do
		command -v "$tool" >/dev/null || die "make test KERNEL= needs $tool installed"
	done
else
	qemu/setup.sh || { trouble "the set-up"; finish; }
fi
qemu/build.sh || { trouble "the build"; finish; }

# The host's tests: with the machine's own Rust, if it has one, and with the minimum version.
host_tests() {
	"$@" test --locked --manifest-path selftests/host/Cargo.toml
}
if [ -z "${KERNEL:-}" ]; then
	try host-msrv "testing the core on the host ($(qemu/enter.sh rustc --version | cut -d' ' -f1,2))" \
		host_tests qemu/enter.sh env CARGO_TARGET_DIR="$RB_CACHE/target-msrv" cargo ||
		trouble "the host's tests"
	count "$RB_LOGS/host-msrv.log"
fi
if command -v cargo >/dev/null; then
	export CARGO_TARGET_DIR=$RB_CACHE/target
	try host "testing the core on the host ($(rustc --version | cut -d' ' -f1,2))" \
		host_tests cargo || trouble "the host's tests"
	count "$RB_LOGS/host.log"
fi

# The tests of the plots and of the sums of times.
if [ -n "${KERNEL:-}" ]; then
	:
elif try bench-test "testing the benchmark" qemu/bench.sh test; then
	count "$RB_LOGS/bench-test.log"
else
	trouble "the benchmark's tests"
fi

# Builds the client library on the host, too, with the minimum version of Rust.
client_builds() {
	qemu/enter.sh env CARGO_TARGET_DIR="$RB_CACHE/target-msrv" cargo build --locked --all-targets \
		--manifest-path lib/Cargo.toml
}
if [ -z "${KERNEL:-}" ] && ! try client "building the client library" client_builds; then
	trouble "the client library"
fi

# Runs the core under the fuzzer, starting from the corpus.
if [ -n "${KERNEL:-}" ] && ! command -v c++ >/dev/null; then
	say "skipped: the fuzzer, which needs c++"
	skipped=$((skipped + 1))
elif try fuzz-core "fuzzing the core on the host" qemu/fuzz-core.sh; then
	grep '^# ' "$RB_LOGS/fuzz-core.log"
	pass
else
	trouble "fuzzing the core"
fi

# The module must not need more instructions than recorded. There is no record for another kernel or
# compiler.
counts() {
	local rc=0
	qemu/bench.sh guard || rc=$?
	[ "$rc" -eq 4 ] || return "$rc"
}
if [ -n "${KERNEL:-}" ]; then
	say "skipped: counting instructions, of a kernel that is not the reference"
	skipped=$((skipped + 1))
elif ! try counts "counting instructions" counts; then
	trouble "counting instructions: $(tail -n 2 "$RB_LOGS/counts.log" | tr '\n' ' ')"
elif grep 'skipped: ' "$RB_LOGS/counts.log" >&2; then
	skipped=$((skipped + 1))
else
	tail -n 1 "$RB_LOGS/counts.log"
	pass
fi

# Checks the files that make install writes.
installs() {
	local to=$RB_CACHE/out/install file kbuild_args=
	[ -n "${KDIR:-}" ] || kbuild_args=LOCALVERSION=+$(krel | cut -d+ -f2)
	rm -rf "$to"
	qemu/enter.sh make -s KDIR="${KDIR:-$RB_TREE}" BUILD="$RB_BUILD/module" DESTDIR="$to" \
		KBUILD_ARGS="$kbuild_args" install || return 1
	for file in usr/include/linux/rust_buddy.h usr/lib/udev/rules.d/60-rust_buddy.rules \
		usr/lib/sysusers.d/rust_buddy.conf usr/share/doc/rust_buddy/modprobe.conf \
		usr/share/doc/rust_buddy/modules-load.conf; do
		[ -s "$to/$file" ] || { echo "no $file"; return 1; }
	done
	find "$to/lib/modules" -name 'rust_buddy.ko*' | grep . || { echo "no module"; return 1; }
}
if try install "installing into a folder" installs; then
	pass
else
	trouble "make install"
fi

# The guest. The backing file of the NVMe controller is made and checked here, so that data which
# the device has written is verified from outside.
mkdir -p "$RB_CACHE/out"
disk=$RB_CACHE/out/nvme.img
image=$RB_BUILD/selftests/nvme-image
qemu/enter.sh "$image" create "$disk" || trouble "making the NVMe image"
# One test replays the start of this kernel from its log.
guest tests "the guest" --nvme "$disk" \
	--append "cma=256M memmap=64M\$0x40000000 memblock=debug log_buf_len=4M" \
	--timeout 3600 -- bash qemu/guest/all.sh
if qemu/enter.sh "$image" check "$disk"; then
	pass
else
	trouble "the NVMe image holds something else than was written"
fi

# A guest without cma= and memmap=, for the refusals and their messages.
guest bare "the bare guest" --timeout 300 -- bash selftests/bare.sh

# Entries of 1 GiB, on a CPU that supports them.
RB_CPU=max RB_MEMORY=5G guest large "the guest with 1 GiB in one piece" \
	--append "memmap=1G\$0x100000000" --timeout 600 -- \
	bash qemu/guest/tests.sh range phys_start=0x100000000 size_mb=1024 -- huge

# Devices behind an IOMMU, and devices that use bounce buffers.
guest iommu "the guest with an IOMMU" --iommu --append "memmap=64M\$0x40000000" --timeout 600 -- \
	bash qemu/guest/iommu.sh
guest swiotlb "the guest with swiotlb=force" --append "swiotlb=force memmap=64M\$0x40000000" \
	--timeout 300 -- bash qemu/guest/swiotlb.sh
finish
