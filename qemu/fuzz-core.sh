#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs the allocator core under libFuzzer (selftests/host/fuzz), guided by coverage.
#
#   fuzz-core.sh             from the corpus, a fixed number of executions and seed
#   fuzz-core.sh minutes N   for N minutes, with a new seed, on all CPUs; new inputs are kept in
#                            .cache/fuzz-core/corpus, from which the next run starts
#   fuzz-core.sh merge       writes a small corpus with the coverage of both corpora into the tree,
#                            to be reviewed and committed
#   fuzz-core.sh lint        clippy, with the flags of the build
#
# If core and model disagree on an input, the run fails and keeps the input.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"
cd "$RB_TOP"

runs=${RB_FUZZ_RUNS:-30000}
seed=${RB_FUZZ_SEED:-1965}
crate=selftests/host/fuzz
corpus=$crate/corpus
work=$RB_CACHE/fuzz-core
longest=256

# The flags of cargo-fuzz for a nightly compiler, written for a stable one.
flags=(-Cpasses=sancov-module -Ccodegen-units=1 --cfg fuzzing)
for flag in level=4 inline-8bit-counters pc-table trace-compares; do
	flags+=("-Cllvm-args=-sanitizer-coverage-$flag")
done

# cargo_fuzz SUBCOMMAND ARGS...
cargo_fuzz() {
	local host command=$1
	shift
	host=$(qemu/enter.sh rustc -vV | sed -n 's/^host: //p')
	binary=$RB_CACHE/target-fuzz/$host/debug/core
	# With an explicit target, build scripts and macros are built without the flags.
	qemu/enter.sh env CARGO_TARGET_DIR="$RB_CACHE/target-fuzz" RUSTFLAGS="${flags[*]}" \
		cargo "$command" --locked --target "$host" --manifest-path "$crate/Cargo.toml" "$@"
}

# Runs the fuzzer with a log, and shows the relevant lines.
fuzz() {
	local rc=0 start=$SECONDS input
	# Its own files contain its process ID, which is the same in every new PID namespace.
	rm -rf "$work/tmp"
	mkdir -p "$work/found" "$work/tmp"
	qemu/enter.sh env TMPDIR="$work/tmp" "$binary" -max_len="$longest" -len_control=0 -reload=0 \
		-artifact_prefix="$work/found/" "$@" >"$work/log" 2>&1 || rc=$?
	seconds=$((SECONDS - start))
	if [ "$rc" -ne 0 ]; then
		grep -aE -A 1 'panicked at|SUMMARY|^ERROR|^==' "$work/log" || tail -n 20 "$work/log"
		input=$(sed -n 's/.*Test unit written to //p' "$work/log" | tail -n 1)
		[ -z "$input" ] || say "to play it again: REPLAY=$input" \
			"cargo test --manifest-path selftests/host/Cargo.toml --test corpus"
		die "the fuzzer failed (exit $rc, whole log in $work/log)"
	fi
}

# Prints the last number that follows WORD in the log.
after() { grep -aoE "$1 *[0-9]+" "$work/log" | tail -n 1 | grep -oE '[0-9]+$' || echo 0; }

# Prints the number of files in the corpus, and their bytes.
extent() { find "$corpus" -type f -printf '%s\n' | awk '{ n += $1 } END { print NR, n + 0 }'; }

# figures FOLDER: prints the figures of the run that put its new inputs in FOLDER.
figures() {
	local edges all files bytes executed new
	all=$(sed -n 's/.*Loaded.*modules* *(\([0-9]*\) inline 8-bit counters).*/\1/p' "$work/log" | head -n 1)
	edges=$(after 'cov:')
	# On several CPUs libFuzzer prints no final figures.
	executed=$(sed -n 's/^#\([0-9][0-9]*\).*/\1/p' "$work/log" | tail -n 1)
	new=$(($(find "$1" -type f | wc -l) - had))
	read -r files bytes < <(extent)
	echo "# fuzz-core: $executed executions in $seconds s, $edges of ${all:-0} edges covered," \
		"corpus of $files files ($bytes bytes), $new new inputs, seed $seed"
	printf '# {"figure": "fuzz-core", "executions": %d, "seconds": %d, "edges": %d, "instrumented": %d, "corpus_files": %d, "corpus_bytes": %d, "new_inputs": %d, "seed": %d}\n' \
		"$executed" "$seconds" "$edges" "${all:-0}" "$files" "$bytes" "$new" "$seed"
	# Without coverage the fuzzer would find nothing, and would appear to pass.
	[ "$edges" -gt 500 ] || die "the fuzzer sees no coverage (log in $work/log)"
}

case ${1:-} in
"")
	say "building the fuzzer"
	cargo_fuzz build
	mkdir -p "$work"
	rm -rf "$work/scratch"
	mkdir "$work/scratch"
	had=0
	# Sorted, since the order of a folder differs between disks.
	find "$corpus" -type f | LC_ALL=C sort | paste -sd, >"$work/inputs"
	say "$runs executions, seed $seed"
	fuzz -runs="$runs" -seed="$seed" -seed_inputs="@$work/inputs" "$work/scratch"
	figures "$work/scratch"
	;;
minutes)
	minutes=${2:?how many minutes}
	seed=${RB_FUZZ_SEED:-$RANDOM}
	say "building the fuzzer"
	cargo_fuzz build
	mkdir -p "$work/corpus"
	had=$(find "$work/corpus" -type f | wc -l)
	say "$minutes minutes, seed $seed; log in $work/log"
	fuzz -fork="$(nproc)" -max_total_time=$((minutes * 60)) -seed="$seed" "$work/corpus" "$corpus"
	figures "$work/corpus"
	;;
merge)
	say "building the fuzzer"
	cargo_fuzz build
	mkdir -p "$work/corpus"
	rm -rf "$work/edges" "$work/counts"
	mkdir "$work/edges" "$work/counts"
	# The smallest set that covers every edge. In addition, the longest inputs of a set that
	# covers every edge as often, since long ones go deepest. That whole set would be ten times
	# as large.
	fuzz -set_cover_merge=1 -use_counters=0 "$work/edges" "$corpus/core" "$work/corpus"
	fuzz -set_cover_merge=1 "$work/counts" "$corpus/core" "$work/corpus"
	rm -rf "$corpus/core"
	cp -r "$work/edges" "$corpus/core"
	find "$work/counts" -type f -printf '%s %p\n' | LC_ALL=C sort -k 1,1nr -k 2 | head -n 150 |
		cut -d ' ' -f 2- | xargs -d '\n' cp -t "$corpus/core"
	say "files and bytes in $corpus: $(extent)"
	;;
lint)
	cargo_fuzz clippy -- -D warnings
	;;
*)
	die "usage: fuzz-core.sh [minutes N|merge|lint]"
	;;
esac
