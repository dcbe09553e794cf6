#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs the guest's tests again in the debug kernel (debug.config): KASAN, lockdep, sleeping in
# atomic context, DEBUG_OBJECTS, page table checks, DMA-API debugging, UBSAN, Rust's own assertions,
# and kmemleak at the end. Any report fails the run.
#
#   RB_SECONDS=n  begin no test program after n seconds; the rest is skipped and named
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"
. "$here/results.sh"
cd "$RB_TOP" || exit 1

qemu/setup.sh || { trouble "the set-up"; finish; }
qemu/debug-kernel.sh || { trouble "building the debug kernel"; finish; }

export RB_BUILD=$RB_CACHE/build-debug KDIR=$RB_DEBUG KBUILD_ARGS="LLVM=1 RB_AUDIT=1"
qemu/build.sh || { trouble "the build"; finish; }
disk=$RB_CACHE/out/debug-nvme.img
mkdir -p "$RB_CACHE/out"
qemu/enter.sh "$RB_BUILD/selftests/nvme-image" create "$disk"
export KERNEL=$RB_DEBUG/rust_buddy-debug.img RB_MEMORY=3G
deadline=
if [ -n "${RB_SECONDS:-}" ]; then
	# Leaves time for the longest program, and for the search for leaks.
	deadline=$((RB_SECONDS - SECONDS - 600))
fi
guest debug "the guest" --append "cma=256M memmap=64M\$0x40000000" --nvme "$disk" \
	--timeout 4500 -- env ${deadline:+RB_UNTIL=$deadline} bash qemu/guest/debug.sh
finish
