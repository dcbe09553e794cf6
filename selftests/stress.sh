#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs stress-ng on both nodes, which tests any device without knowing it: unusual opens, ioctls,
# mmaps, polls, seeks and more, from several processes.
. qemu/guest/lib.sh
. selftests/ktap.sh

seconds=${RB_STRESS_SECONDS:-15}

counters() { grep -E '^(size|free|requested|granted|largest_free|buffers|quarantined):' "$debug/pool1/status"; }

stressed() {
	local said
	said=$(cd /tmp && timeout -k 10 $((seconds + 120)) \
		stress-ng --dev 2 --dev-file "$1" --timeout "$seconds" --metrics-brief 2>&1) || {
		sed 's/^/# /' <<<"$said"
		return 1
	}
	# A stressor that did no operation prints no line of this form.
	sed -n 's/.*metrc: .* \(dev  *[1-9][0-9]* .*\)/# stress-ng: \1/p' <<<"$said" | grep .
}

still_works() {
	"$RB_BUILD/selftests/example" | grep -qE '^tell the device 0x'
}

# Waits, since the memory of a process is freed some time after it was waited for.
all_back() {
	local after
	for _ in $(seq 50); do
		after=$(counters)
		[ "$before" = "$after" ] && return
		sleep 0.1
	done
	diff <(echo "$before") <(echo "$after") | sed 's/^/# /'
	return 1
}

plan stress 5
if ! command -v stress-ng >/dev/null; then
	for name in "plain node" "phys node" "still works" "every byte is back" "unloads"; do
		skip "$name" "there is no stress-ng"
	done
	finish
	exit
fi
load quarantine_ms=0
before=$(counters)
check "survives stress-ng on the plain node" stressed /dev/rust_buddy
check "survives stress-ng on the phys node" stressed /dev/rust_buddy_phys
check "works as before afterwards" still_works
if [ -n "$before" ]; then
	check "has every byte back" all_back
else
	skip "has every byte back" "the kernel has no debugfs: CONFIG_DEBUG_FS=y"
fi
check "is unloaded" rmmod rust_buddy
finish
