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
log=
finish() {
	[ -z "$log" ] || awk -f qemu/figures.awk "$log"
	echo "$passed passed, $failed failed, $skipped skipped"
	[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
	exit
}

qemu/setup.sh || { failed=1; finish; }
qemu/debug-kernel.sh || { failed=1; finish; }

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
log=$RB_CACHE/out/debug/log
read -r p f s < <(awk -f qemu/tally.awk "$log")
passed=$((passed + p))
failed=$((failed + f))
skipped=$((skipped + s))
finish
