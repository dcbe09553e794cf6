#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Style and lints: rustfmt with the kernel's settings, clippy for kernel and host code, checkpatch,
# the order of layers, prose, and scripts by shellcheck. The last line has the counts.
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"
cd "$RB_TOP" || exit 1

qemu/setup.sh || exit 1
# In CI this is the first script to run, and the cache has no folder for logs yet.
mkdir -p "$RB_LOGS"
passed=0
failed=0
rel=$(krel)

# judge NAME COMMAND...: passes if COMMAND exits with 0. Shows its output otherwise.
judge() {
	local name=$1 log=$RB_LOGS/check-$1.log
	shift
	if "$@" >"$log" 2>&1; then
		say "$name: clean"
		passed=$((passed + 1))
	else
		cat "$log" >&2
		say "$name: not clean"
		failed=$((failed + 1))
	fi
}

format() {
	# The kernel's settings name options of nightly rustfmt, which causes warnings.
	qemu/enter.sh rustfmt --check --edition 2021 --config-path "$RB_TREE/.rustfmt.toml" \
		rust_buddy.rs selftests/host/src/*.rs selftests/host/tests/*.rs selftests/host/kernel/src/*.rs \
		selftests/host/fuzz/fuzz_targets/*.rs selftests/host/bench/src/*.rs lib/src/*.rs lib/examples/*.rs \
		bench/*.rs
}
clippy_kernel() {
	rm -rf "$RB_CACHE/build/clippy"
	mkdir -p "$RB_CACHE/build/clippy"
	local log
	log=$(qemu/enter.sh make KDIR="$RB_TREE" BUILD="$RB_CACHE/build/clippy" \
		KBUILD_ARGS="LOCALVERSION=+${rel#*+} CLIPPY=1" modules 2>&1) || { echo "$log"; return 1; }
	if grep -q '^warning' <<<"$log"; then
		echo "$log"
		return 1
	fi
}
clippy_host() {
	qemu/enter.sh env CARGO_TARGET_DIR="$RB_CACHE/target-msrv" cargo clippy --locked --all-targets \
		--manifest-path selftests/host/Cargo.toml -- -D warnings
}
clippy_client() {
	qemu/enter.sh env CARGO_TARGET_DIR="$RB_CACHE/target-msrv" cargo clippy --locked --all-targets \
		--manifest-path lib/Cargo.toml -- -D warnings
}
clippy_fuzz() {
	qemu/fuzz-core.sh lint
}
clippy_bench() {
	qemu/bench.sh lint
}
checkpatch() {
	# User space and the ABI's header have no u64, BIT() or __noreturn. The tests' macros
	# evaluate arguments twice and return, like the harness's own. The tests make system calls
	# that a kernel may lack, and access volatile memory.
	local ignore=PREFER_KERNEL_TYPES,CAMELCASE,BIT_MACRO,PREFER_DEFINED_ATTRIBUTE_MACRO found
	ignore+=,MACRO_ARG_REUSE,MACRO_WITH_FLOW_CONTROL,EMBEDDED_FILENAME,ENOSYS,VOLATILE
	# checkpatch exits with 0 after a CHECK, and xargs with 123 after an ERROR. So a file with a
	# known error shows whether checkpatch runs at all.
	printf '// SPDX-License-Identifier: GPL-2.0\nint  f(void)  {return(0);}\n' >"$RB_LOGS/bad.c"
	found=$(printf '%s\0' "$RB_LOGS/bad.c" | run_checkpatch "$ignore" 2>&1)
	grep -q 'bad.c:2: ERROR' <<<"$found" || { echo "checkpatch does not run: $found"; return 1; }
	# checkpatch takes FIXTURE_DATA(x) *self for a multiplication.
	found=$(git ls-files -z '*.c' '*.h' '*.rs' Makefile '*/Makefile' Kbuild |
		run_checkpatch "$ignore" 2>&1 |
		grep -v "spaces preferred around that '\*' (ctx:WxV)")
	echo "$found"
	[ -z "$found" ]
}
# run_checkpatch IGNORE: checks the files whose names are read from stdin.
run_checkpatch() {
	xargs -0 qemu/enter.sh "$RB_TREE/scripts/checkpatch.pl" --no-tree --strict --terse \
		--no-summary --quiet --ignore "$1" --max-line-length=100 -f
}
shellcheck_all() {
	# A sourced script is checked as a file of its own.
	git ls-files -z '*.sh' .ci/run | xargs -0 qemu/enter.sh shellcheck -s bash -e SC1091,SC2001,SC2016,SC2034,SC2154,SC2317
}
layers() {
	qemu/enter.sh python3 qemu/lint/layers.py
}
prose() {
	git ls-files -z | qemu/enter.sh python3 qemu/lint/prose.py --files --kernel "$RB_TREE"
}
judge rustfmt format
judge clippy-kernel clippy_kernel
judge clippy-host clippy_host
judge clippy-client clippy_client
judge clippy-fuzz clippy_fuzz
judge clippy-bench clippy_bench
judge checkpatch checkpatch
judge shellcheck shellcheck_all
judge layers layers
judge prose prose
judge mutants-table qemu/mutants.sh table-check
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
