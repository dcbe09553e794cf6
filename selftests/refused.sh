# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# refused 'WORDS' PARAMETER...: checks that loading with these parameters fails, that the log has a
# message with WORDS (a regular expression), and that the refusal leaves no trace.

# Prints the kernel's table of physical addresses, which a refusal must not change.
iomem() { cat /proc/iomem; }

cma_free() { sed -n 's/^CmaFree: *\([0-9]*\).*/\1/p' /proc/meminfo; }

# Prints the name of the errno in insmod's message.
errno_of() {
	case $1 in
	*"File exists"*) echo EEXIST ;;
	*"Device or resource busy"*) echo EBUSY ;;
	*"No such device or address"*) echo ENXIO ;;
	*"Invalid parameters"* | *"Invalid argument"*) echo EINVAL ;;
	*"Cannot allocate memory"* | *"Out of memory"*) echo ENOMEM ;;
	*) echo "$1" ;;
	esac
}

# refused_as ERRNO 'WORDS' PARAMETER...: checks two refusals in a row, each with this errno.
refused_as() {
	local errno=$1 words=$2 i
	shift 2
	for i in 1 2; do
		refused "$words" "$@" || return 1
		if [ "$(errno_of "$insmod_said")" != "$errno" ]; then
			echo "# load $i: $(errno_of "$insmod_said")"
			return 1
		fi
	done
}

refused() {
	local words=$1 free rest map
	shift
	echo "refused: $*" >/dev/kmsg
	free=$(cma_free)
	map=$(iomem)
	if insmod_said=$(load "$@" 2>&1); then
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
	if [ "$map" != "$(iomem)" ]; then
		echo "# /proc/iomem changed:"
		diff <(echo "$map") <(iomem) | sed 's/^/# /'
		return 1
	fi
	# The kernel lends CMA pages to caches, and takes them back during an allocation.
	if [ $((free - $(cma_free))) -gt 8192 ]; then
		echo "# CmaFree was $free kB and is $(cma_free) kB"
		return 1
	fi
}
