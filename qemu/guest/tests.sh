#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# All kselftests, inside the guest: each program's TAP, one after the other, with a line before it
# and a line after it for tally.awk.
#
# tests.sh SOURCE [PARAMETER...] -- PROGRAM...
#
# Loads the module from that source, runs the programs, and unloads it. There is no quarantine
# unless a parameter sets it, since most tests expect that memory is free at once.
. qemu/guest/lib.sh

source=$1
shift
params=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
	params+=("$1")
	shift
done
shift
case "${params[*]}" in
*quarantine_ms=*) ;;
*) params+=(quarantine_ms=0) ;;
esac

echo "# suite load:$source"
if [ "$source" = cma ] && ! grep -q '^CmaTotal: *[1-9]' /proc/meminfo; then
	echo "1..0 # SKIP the kernel has no CMA area: CONFIG_CMA=y and cma=256M"
	echo "# exit 4"
	exit 0
fi
echo 1..1
if load "source=$source" "${params[@]}"; then
	echo "ok 1 load source=$source ${params[*]}"
else
	echo "not ok 1 load source=$source ${params[*]}"
	echo "# exit 1"
	exit 0
fi
echo "# exit 0"

for program in "$@"; do
	echo "# suite $program:$source"
	if out_of_time; then
		echo "1..0 # SKIP $program: there is no time left"
		echo "# exit 4"
		continue
	fi
	if [ -x "$RB_BUILD/selftests/$program" ]; then
		"$RB_BUILD/selftests/$program" -h >/dev/null 2>&1
		if [ $? -ge 126 ]; then
			echo "1..0 # SKIP the kernel does not run $program: CONFIG_IA32_EMULATION=y"
			echo "# exit 4"
			continue
		fi
		# In a separate folder, since programs may leave files there.
		(cd /tmp && timeout -k 10 900 "$RB_BUILD/selftests/$program") 2>&1
		echo "# exit $?"
	else
		echo "1..0 # SKIP $program was not built"
		echo "# exit 4"
	fi
done

echo "# suite unload:$source"
echo 1..1
if rmmod rust_buddy; then
	echo "ok 1 unload"
	echo "# exit 0"
else
	echo "not ok 1 unload"
	echo "# exit 1"
fi
