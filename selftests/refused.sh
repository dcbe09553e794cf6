# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# refused 'WORDS' PARAMETER...: loading with these parameters fails, the log says
# why in a sentence with WORDS (a regular expression), and nothing stays behind.

cma_free() { sed -n 's/^CmaFree: *\([0-9]*\).*/\1/p' /proc/meminfo; }

refused() {
	local words=$1 free rest
	shift
	echo "refused: $*" >/dev/kmsg
	free=$(cma_free)
	if load "$@" 2>/dev/null; then
		echo "# it loaded"
		rmmod rust_buddy
		return 1
	fi
	rest=$(dmesg | tac | sed '/refused: /q')
	if ! grep -qE "rust_buddy: .*($words)" <<<"$rest"; then
		echo "# the log does not say '$words':"
		sed 's/^/# /' <<<"$rest"
		return 1
	fi
	if [ -e /sys/module/rust_buddy ] || [ -e /dev/rust_buddy ] || [ -e "$debug" ] ||
		grep -q rust_buddy /proc/iomem; then
		echo "# something stayed behind"
		return 1
	fi
	# The kernel lends CMA pages to caches, and takes them back while it looks for room.
	if [ $((free - $(cma_free))) -gt 8192 ]; then
		echo "# CmaFree was $free kB and is $(cma_free) kB"
		return 1
	fi
}
