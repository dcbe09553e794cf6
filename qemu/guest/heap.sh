#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs the kernel's own test of dma-heaps unchanged on the module's heap. With vgem as the importer
# it must print all 12 results.
. qemu/guest/lib.sh
. selftests/ktap.sh

program=$RB_BUILD/selftests/dmabuf-heap
said=$(mktemp)

passes_upstream() {
	"$program" >"$said" 2>&1
	# The test runs on all heaps. This selects the output from this heap to the next one, or to
	# the end.
	sed -n '/Testing heap: rust_buddy$/,$p' "$said" |
		awk '/Testing heap:/ && !/rust_buddy$/ { exit } { print }' >"$said.ours"
	sed 's/^/# /' "$said.ours"
	[ "$(grep -c '^ok ' "$said.ours")" -eq 12 ] && ! grep -q '^not ok\|SKIP' "$said.ours"
}
all_is_back() {
	local i
	for i in $(seq 50); do
		[ "$(sed -n 's/^buffers: //p' "$debug/pool1/status")" = 0 ] && return 0
		sleep 0.1
	done
	return 1
}
node_is_gone() { [ ! -e /dev/dma_heap/rust_buddy ]; }
other_name() {
	load heap_name=cam.0 || return 1
	local mode
	mode=$(stat -c '%a %U' /dev/dma_heap/cam.0)
	rmmod rust_buddy
	[ "$mode" = "600 root" ] && [ ! -e /dev/dma_heap/cam.0 ]
}
no_name() {
	load heap_name= || return 1
	local there=0
	[ -e /dev/dma_heap/rust_buddy ] || there=1
	rmmod rust_buddy
	[ "$there" = 1 ]
}

if [ ! -x "$program" ]; then
	echo "# suite heap:upstream"
	echo "1..0 # SKIP the kernel source has no dmabuf-heaps test that builds"
	echo "# exit 4"
	exit 0
fi
plan heap:upstream 6
check "loads" load quarantine_ms=0
if modprobe vgem 2>/dev/null; then
	check "passes the kernel's own test, 12 of 12" passes_upstream
else
	skip "passes the kernel's own test, 12 of 12" "the kernel has no vgem: CONFIG_DRM_VGEM=m"
fi
check "gave all of it back" all_is_back
check "unloads, and the node goes" eval "rmmod rust_buddy && node_is_gone"
check "has another name if told" other_name
check "is not there if told" no_name
finish
