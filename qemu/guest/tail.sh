#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Measures requests while memory is full and fragmented: the module's, and the kernel's own.
#
# tail.sh SECONDS		time for each row of the kernel's
. qemu/guest/lib.sh

load source=contig || exit 1
device=$(echo /dev/nvme*n1)
"$RB_BUILD/bench/pressure" "$device" >"$RB_OUT/pressure" &
pressure=$!
until [ -s "$RB_OUT/pressure" ]; do
	kill -0 $pressure || exit 1
	sleep 1
done
cat "$RB_OUT/pressure"
"$RB_BUILD/bench/tail" || exit 1
insmod "$RB_BUILD/bench/rust_buddy_bench.ko" tail_seconds="$1" || exit 1
dmesg | grep -ao '{"bench": "tail".*'
kill -0 $pressure && grep -E '^(Mem|Cma|Cached|AnonPages)' /proc/meminfo
