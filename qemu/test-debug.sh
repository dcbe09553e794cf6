#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The guest's tests once more, in a kernel that watches itself (debug.config):
# KASAN, lockdep, sleeping in atomic context, DEBUG_OBJECTS, page table checks,
# DMA-API debugging, UBSAN, Rust's own assertions, and kmemleak at the end. Any
# report fails the run.
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"
cd "$RB_TOP" || exit 1

passed=0
failed=0
skipped=0
finish() {
	echo "$passed passed, $failed failed, $skipped skipped"
	[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
	exit
}

# A source tree of its own: the stock one is configured in place.
unpack() {
	rm -rf "$RB_DEBUG"
	mkdir -p "$RB_DEBUG"
	qemu/enter.sh tar -xf "$RB_KERNEL/usr/src/linux-source-$RB_SERIES.tar.xz" -C "$RB_DEBUG" \
		--strip-components=1
}
compile() {
	# shellcheck disable=SC2016 # expanded by the inner shell
	qemu/enter.sh bash -ec '
		cd "$1"
		make LLVM=1 KCONFIG_ALLCONFIG="$2" allnoconfig
		lost=$(grep "^CONFIG_" "$2" | grep -vxFf .config) || :
		if [ -n "$lost" ]; then
			echo "the configuration lost: $lost"
			exit 1
		fi
		make LLVM=1 -j"$(nproc)" bzImage modules
		# Elsewhere, or virtme-ng takes the tree for one whose modules it has to find.
		cp arch/x86/boot/bzImage rust_buddy-debug.img
	' - "$RB_DEBUG" "$RB_TOP/qemu/debug.config"
}

qemu/setup.sh || { failed=1; finish; }
once debug-source "$(krel)" "unpacking the source for the debug kernel" unpack
once debug-kernel "$(krel) $(cksum <qemu/debug.config)" \
	"building the debug kernel (about 10 minutes on 2 cores)" compile

export RB_BUILD=$RB_CACHE/build-debug KDIR=$RB_DEBUG KBUILD_ARGS=LLVM=1
qemu/build.sh || { failed=1; finish; }
disk=$RB_CACHE/out/debug-nvme.img
mkdir -p "$RB_CACHE/out"
qemu/enter.sh "$RB_BUILD/selftests/nvme-image" create "$disk"
if ! KERNEL=$RB_DEBUG/rust_buddy-debug.img RB_MEMORY=3G qemu/boot.sh debug --quiet \
	--append "cma=256M memmap=64M\$0x40000000" --nvme "$disk" --timeout 2700 -- \
	bash qemu/guest/debug.sh; then
	failed=$((failed + 1))
fi
read -r p f s < <(awk -f qemu/tally.awk "$RB_CACHE/out/debug/log")
passed=$((passed + p))
failed=$((failed + f))
skipped=$((skipped + s))
finish
