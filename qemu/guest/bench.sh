#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In a guest whose clock counts instructions: first allocators in the kernel, then the calls.
#
# bench.sh [PARAMETER...]	of the kernel's benchmark
. qemu/guest/lib.sh

insmod "$RB_BUILD/bench/rust_buddy_bench.ko" "$@" || exit 1
dmesg | grep -ao '{"bench".*'
load source=contig && "$RB_BUILD/bench/calls"
