# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# For scripts that run inside the guest.

set -u
RB_BUILD=${RB_BUILD:-$PWD/.cache/build}
RB_KO=$RB_BUILD/module/rust_buddy.ko
debug=/sys/kernel/debug/rust_buddy

mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null

load() {
	# The module that walks the audit's records, if it was built.
	if [ -e "$RB_BUILD/audit/rust_buddy_audit.ko" ] && ! grep -q '^rust_buddy_audit ' /proc/modules; then
		insmod "$RB_BUILD/audit/rust_buddy_audit.ko" || return 1
	fi
	insmod "$RB_KO" "$@"
}

# RB_UNTIL: seconds after the guest's start at which no further test program begins (default: none).
out_of_time() {
	[ -n "${RB_UNTIL:-}" ] && [ "$(cut -d. -f1 /proc/uptime)" -ge "$RB_UNTIL" ]
}
