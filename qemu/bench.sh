#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Compares the allocator core with published ones on the host (selftests/host/bench), and with the
# kernel's own in a guest whose clock counts instructions (bench/).
#
#   bench.sh         both, some minutes; tables and JSON, which are kept in a log
#   bench.sh quick   the host's smallest size only
#   bench.sh plots   the host only, all sizes, and its plots to docs/plots
#   bench.sh kernel  the guest only
#   bench.sh tail    single requests in a guest whose memory is full and fragmented
#   bench.sh guard   compares instructions with bench/instructions.txt; fails at 5 % more than
#                    recorded, or at too many beside other allocators; "write" updates the file
#   bench.sh test    the benchmark's own tests
#   bench.sh lint    clippy
#
# docs/benchmarks.md describes the measurements.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"
cd "$RB_TOP"

cargo_bench() {
	qemu/enter.sh env CARGO_TARGET_DIR="$RB_CACHE/target-bench" cargo "$@"
}

build_kernel_bench() {
	local rel args
	rel=$(krel)
	args=(-C "$RB_TREE" M="$RB_TOP/bench" MO="$RB_BUILD/bench" "LOCALVERSION=+${rel#*+}")
	mkdir -p "$RB_BUILD/bench"
	qemu/build.sh
	step bench-kernel "building the kernel's benchmark" qemu/enter.sh make "${args[@]}" modules
	for program in calls tail pressure; do
		qemu/enter.sh cc -O2 -Wall -Wextra -Werror -Isrc/uapi "bench/$program.c" \
			-o "$RB_BUILD/bench/$program"
	done
}

# Measures each pair of alloc and free in two boots, with and without init_on_alloc. The counts are
# exact, so one run suffices.
kernel_bench() {
	local log
	build_kernel_bench
	for clear in 0 1; do
		qemu/boot.sh bench --icount --quiet --append "cma=256M init_on_alloc=$clear" --timeout 600 \
			-- bash qemu/guest/bench.sh
		log=$RB_CACHE/out/bench/log
		grep -a '"bench"' "$log"
		say "instructions for alloc and free, init_on_alloc=$clear:"
		awk -f qemu/json.awk -f qemu/table.awk "$log"
	done
}

# Measures requests while other processes use all memory.
tail_bench() {
	local disk=$RB_CACHE/out/pressure.img
	build_kernel_bench
	mkdir -p "$RB_CACHE/out"
	truncate -s 1G "$disk"
	qemu/boot.sh tail --quiet --nvme "$disk" --append "cma=256M init_on_alloc=0" --timeout 1800 \
		-- bash qemu/guest/tail.sh 120
	rm -f "$disk"
	grep -a '"bench"\|^pressure' "$RB_CACHE/out/tail/log"
	awk -f qemu/json.awk -f qemu/table.awk "$RB_CACHE/out/tail/log"
}

# Prints the kernel and the compiler of the counts, which are comparable for the same ones only.
made_by() { echo "$(krel), $(qemu/enter.sh rustc --version | cut -d ' ' -f 1,2)"; }

# Measures the module's counts again, and compares them with the committed ones.
guard() {
	local known=bench/instructions.txt now=$RB_CACHE/out/guard/counts
	if [ "${1:-}" != write ] && [ "$(sed -n 's/^# of //p' $known)" != "$(made_by)" ]; then
		say "skipped: $known has none of $(made_by)"
		exit 4
	fi
	build_kernel_bench
	qemu/boot.sh guard --icount --quiet --append "cma=256M init_on_alloc=0" --timeout 600 -- \
		bash qemu/guest/bench.sh contig=0
	awk -f qemu/json.awk -f qemu/counts.awk "$RB_CACHE/out/guard/log" >"$now"
	if [ "${1:-}" = write ]; then
		{ sed '/^# of /,$d' $known; echo "# of $(made_by)"; grep -E ' (core|magazine|ALLOC|INFO)' "$now"; } >"$now.new"
		mv "$now.new" $known
		return
	fi
	awk -v name="$known" -f qemu/guard.awk $known "$now"
}

manifest=selftests/host/bench/Cargo.toml
case ${1:-} in
kernel)
	kernel_bench
	;;
guard)
	guard "${2:-}"
	;;
tail)
	tail_bench
	;;
"" | quick | plots)
	to=$RB_LOGS/bench
	size=()
	[ "${1:-}" = quick ] && size=(quick)
	say "building the benchmark"
	cargo_bench build --locked --release --manifest-path "$manifest"
	mkdir -p "$to"
	say "$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1), $(nproc) CPUs," \
		"load $(cut -d ' ' -f 1 /proc/loadavg)"
	cargo_bench run --locked --release --manifest-path "$manifest" --quiet -- \
		"${size[@]}" --plots "$to" | tee "$to/log"
	grep '^{' "$to/log" >"$to/bench.jsonl"
	if [ "${1:-}" = plots ]; then
		mkdir -p docs/plots
		cp "$to"/*.svg docs/plots
	fi
	if [ -z "${1:-}" ]; then
		kernel_bench
		tail_bench
	fi
	;;
test)
	cargo_bench test --locked --release --manifest-path "$manifest"
	;;
lint)
	cargo_bench clippy --locked --manifest-path "$manifest" -- -D warnings
	;;
*)
	die "usage: bench.sh [quick|plots|kernel|tail|guard|test|lint]"
	;;
esac
