#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# On a kernel booted without cma= and memmap=: source=auto works, and the refusal of another source
# names the remedy.
. qemu/guest/lib.sh
. selftests/ktap.sh
. selftests/refused.sh

auto_is_contig() {
	load || return 1
	local word
	word=$(sed -n 's/^source: //p' "$debug/pool1/status")
	rmmod rust_buddy
	[ "$word" = contig ]
}

plan bare 3
check "auto takes contig" auto_is_contig
check "refuses cma without an area" refused 'no CMA area: boot with cma=128M' source=cma
check "refuses auto when neither has it" refused 'boot with cma=6000M' size_mb=3000
finish
