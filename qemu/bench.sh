#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The allocator core against published ones on the host (selftests/host/bench), and
# against the kernel's own in a guest whose clock counts instructions (bench/).
#
#   bench.sh         both, some minutes; tables and JSON, which are kept in a log
#   bench.sh quick   the host's smallest size only
#   bench.sh kernel  the guest only
#   bench.sh lint    clippy
#
# docs/benchmarks.md says what is measured and how.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"
cd "$RB_TOP"

cargo_bench() {
	qemu/enter.sh env CARGO_TARGET_DIR="$RB_CACHE/target-bench" cargo "$@"
}

# Of two boots, with and without the kernel clearing what it gives: what each pair of
# alloc and free takes. Exact, so once is enough.
kernel_bench() {
	local rel args log
	rel=$(krel)
	args=(-C "$RB_TREE" M="$RB_TOP/bench" MO="$RB_BUILD/bench" "LOCALVERSION=+${rel#*+}")
	mkdir -p "$RB_BUILD/bench"
	qemu/build.sh
	step bench-kernel "building the kernel's benchmark" qemu/enter.sh make "${args[@]}" modules
	qemu/enter.sh cc -O2 -Wall -Wextra -Werror -Isrc/uapi bench/calls.c -o "$RB_BUILD/bench/calls"
	for clear in 0 1; do
		qemu/boot.sh bench --icount --quiet --append "cma=256M init_on_alloc=$clear" --timeout 600 \
			-- bash qemu/guest/bench.sh
		log=$RB_CACHE/out/bench/log
		grep -a '"bench"' "$log"
		say "instructions for alloc and free, init_on_alloc=$clear:"
		awk -F'"' '/"bench"/ {
			n = split($0, part, /[:,}]/)
			printf "%8d KiB  %-7s %-20s %9d\n", part[4] / 1024, $10, $14, part[n - 3]
		}' "$log"
	done
}

manifest=selftests/host/bench/Cargo.toml
case ${1:-} in
kernel)
	kernel_bench
	;;
"" | quick)
	say "building the benchmark"
	cargo_bench build --locked --release --manifest-path "$manifest"
	mkdir -p "$RB_LOGS"
	say "$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1), $(nproc) CPUs," \
		"load $(cut -d ' ' -f 1 /proc/loadavg)"
	cargo_bench run --locked --release --manifest-path "$manifest" --quiet -- "$@" |
		tee "$RB_LOGS/bench.log"
	[ -n "${1:-}" ] || kernel_bench
	;;
lint)
	cargo_bench clippy --locked --manifest-path "$manifest" -- -D warnings
	;;
*)
	die "usage: bench.sh [quick|kernel|lint]"
	;;
esac
