#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# All tests that run in the guest with all three sources of memory.

range=(phys_start=0x40000000)
bash selftests/module.sh
echo "# suite load"
RB_KO=$RB_BUILD/module/rust_buddy.ko timeout -k 10 300 "$RB_BUILD/selftests/load" 2>&1
echo "# exit $?"
bash qemu/guest/tests.sh contig -- abi abi32 answers alloc batch zero clean magazine lifetime isolation nonroot debugfs unload quota gup huge dmabuf heap wait memtype move stack compact reserve priority fragmentation slab slab-rust edu nvme fork mappings
bash qemu/guest/tests.sh cma -- alloc zero magazine memtype move stack compact gup huge dmabuf edu nvme fork mappings
bash qemu/guest/tests.sh range "${range[@]}" -- alloc zero magazine memtype move stack reserve hibernation gup huge dmabuf edu nvme fork mappings
for mode in wc uc; do
	bash qemu/guest/tests.sh range "${range[@]}" memtype=$mode -- memtype
done
bash qemu/guest/tests.sh contig -- device sync disorder stale killed holdup
bash qemu/guest/heap.sh
for ms in 1500 -1; do
	export RB_QUARANTINE_MS=$ms
	bash qemu/guest/tests.sh contig quarantine_ms=$ms -- quarantine quota wait
done
# Zeroed by the caller only, then by the worker as fast as possible.
bash qemu/guest/tests.sh contig zero_cpu_percent=0 -- clean
bash qemu/guest/tests.sh contig zero_cpu_percent=100 -- clean zero
# Hwpoisoned pages stay so, in a pool of this test's own.
bash qemu/guest/tests.sh contig size_mb=16 -- poison
# With memory that normal priority may not use either.
bash qemu/guest/tests.sh contig watermark_min=5 -- priority
# Large enough that 32-bit mmap offsets run out before the pages do.
bash qemu/guest/tests.sh contig size_mb=256 -- quota
# So few buffers that a test can allocate all of them.
bash qemu/guest/tests.sh contig max_buffers=1000 -- alloc
# Pinned memory of killed processes leaves the quarantine while the tests run.
bash qemu/guest/tests.sh contig quarantine_ms=200 -- tangle fuzz
bash selftests/stress.sh
# The mixed load, for as long as it takes to show that it works.
bash qemu/guest/soak.sh 0.4 1
