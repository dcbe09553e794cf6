#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The allocator core against published ones, on the host (selftests/host/bench).
#
#   bench.sh         all sizes, some minutes; tables and JSON, which are kept in a log
#   bench.sh quick   the smallest size only
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

manifest=selftests/host/bench/Cargo.toml
case ${1:-} in
"" | quick)
	say "building the benchmark"
	cargo_bench build --locked --release --manifest-path "$manifest"
	mkdir -p "$RB_LOGS"
	say "$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1), $(nproc) CPUs," \
		"load $(cut -d ' ' -f 1 /proc/loadavg)"
	cargo_bench run --locked --release --manifest-path "$manifest" --quiet -- "$@" |
		tee "$RB_LOGS/bench.log"
	;;
lint)
	cargo_bench clippy --locked --manifest-path "$manifest" -- -D warnings
	;;
*)
	die "usage: bench.sh [quick|lint]"
	;;
esac
