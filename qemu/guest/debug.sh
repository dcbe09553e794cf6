#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In the debug kernel: all tests, then a search for memory leaks.
. qemu/guest/lib.sh
. selftests/ktap.sh

leaks=/sys/kernel/debug/kmemleak
# Ignores leaks from before the module was loaded.
echo scan >$leaks
echo clear >$leaks

# Tests of memory and locks. Loading fifty times, and repeating tests with each source, would take
# long here without finding more.
RB_LOADS=3 bash selftests/module.sh
echo "# suite load"
RB_KO=$RB_KO timeout -k 10 300 "$RB_BUILD/selftests/load" 2>&1
echo "# exit $?"
export RB_OFFSETS=2000 RB_MOVES=500 RB_COMPACTIONS=60 RB_POOLS=2 RB_CLEAN_ROUNDS=500
bash qemu/guest/tests.sh contig -- \
	abi answers fork move gup dmabuf alloc batch zero clean magazine lifetime isolation nonroot debugfs unload quota huge heap wait memtype stack compact reserve priority faults edu nvme mappings
RB_KILLS=200 RB_PAGES=50000 bash qemu/guest/tests.sh contig -- device sync disorder stale killed holdup
bash qemu/guest/tests.sh cma -- alloc zero memtype nvme
bash qemu/guest/tests.sh range phys_start=0x40000000 memtype=wc -- memtype
for ms in 1500 -1; do
	export RB_QUARANTINE_MS=$ms
	bash qemu/guest/tests.sh contig quarantine_ms=$ms -- quarantine quota wait
done
# The debug kernel does some hundred calls per second.
RB_FUZZ_CALLS=30000 bash qemu/guest/tests.sh contig quarantine_ms=200 -- fuzz
# Forks concurrent with migrations, in a kernel that has the delay.
delay=/sys/module/huge_memory/parameters/rust_buddy_pmd_delay_us
[ ! -e $delay ] || echo 300 >$delay
RB_TANGLE_SECONDS=30 bash qemu/guest/tests.sh contig -- tangle
[ ! -e $delay ] || echo 0 >$delay

# The sweep of faults over insmod, which requires that the module is not loaded.
if out_of_time; then
	echo "# suite faults:load"
	echo "1..0 # SKIP stress and faults of insmod: there is no time left"
	echo "# exit 4"
else
	bash selftests/stress.sh
	echo "# suite faults:load"
	RB_KO=$RB_KO timeout -k 10 1600 "$RB_BUILD/selftests/faults" -f module 2>&1
	echo "# exit $?"
fi

no_leaks() {
	# kmemleak reports objects that are at least 5 s old and that two scans have not found.
	sleep 6
	echo scan >$leaks
	sleep 6
	echo scan >$leaks
	cat $leaks >"$RB_OUT/kmemleak"
	sed 's/^/# /' "$RB_OUT/kmemleak" | head -n 100
	[ ! -s "$RB_OUT/kmemleak" ]
}

lockdep_is_on() {
	grep -q '^ debug_locks: *1' /proc/lockdep_stats
}

plan debug 2
check "lockdep saw nothing that made it stop looking" lockdep_is_on
check "nothing is left that was never freed" no_leaks
finish
