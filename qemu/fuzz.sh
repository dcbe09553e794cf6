#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs the fuzzer in rounds, each in a new guest and with a new seed, until one fails. Variables:
#
#   MINUTES=n  end after n minutes (default: never)
#   SEED=n     this seed in every round: the interleaving of threads still varies
#   DEBUG=1    in the debug kernel (see test-debug.sh), where copy_huge_pmd() has a delay
#   AUDIT=1    in the stock kernel with the audit of src/audit.rs, which DEBUG=1 includes
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"
cd "$RB_TOP" || exit 1

# tests.sh stops a program after 300 s, and the last mappings take a while to be torn down.
longest=200
minutes=${MINUTES:-0}
kernel=${KERNEL:-}
memory=2G
if [ -n "$kernel" ]; then
	# KDIR is the caller's, and the caller's tools are used.
	export KDIR RB_INSIDE=1
else
	qemu/setup.sh || exit 1
fi
if [ "${DEBUG:-}" = 1 ]; then
	qemu/debug-kernel.sh || exit 1
	export RB_BUILD=$RB_BUILD-debug KDIR=$RB_DEBUG KBUILD_ARGS="LLVM=1 RB_AUDIT=1"
	kernel=$RB_DEBUG/rust_buddy-debug.img
	memory=3G
fi
if [ "${AUDIT:-}" = 1 ] && [ "${DEBUG:-}" != 1 ]; then
	export RB_BUILD=$RB_BUILD-audit KBUILD_ARGS=RB_AUDIT=1
fi
qemu/build.sh || exit 1

rounds=0
calls=0
boot=
start=$SECONDS
finish() {
	# A guest in the background does not receive the signal of Ctrl-C.
	if [ -n "$boot" ]; then
		pkill -TERM -P "$boot"
		wait "$boot" 2>/dev/null
	fi
	say "$rounds rounds, $calls calls in $((SECONDS - start)) s, nothing found"
	exit
}
trap finish INT TERM

left=$longest
while [ "$minutes" -eq 0 ] || left=$((minutes * 60 - (SECONDS - start))) && [ "$left" -gt 0 ]; do
	seed=${SEED:-0x$(od -An -N7 -tx8 /dev/urandom | tr -d ' ')}
	# The seed determines all of a round, including the source of memory and the quarantine.
	source=("source=contig" "source=cma" "source=range phys_start=0x40000000")
	read -ra words <<<"${source[$((seed % 3))]}"
	quarantine=$((seed / 3 % 2 * 100))
	seconds=$((left < longest ? left : longest))
	say "round $((rounds + 1)): seed $seed, ${words[*]}, quarantine_ms=$quarantine, $seconds s"
	bad=
	KERNEL=$kernel RB_MEMORY=$memory qemu/boot.sh fuzz --quiet --timeout $((seconds * 2 + 900)) \
		--append "cma=256M memmap=64M\$0x40000000" -- \
		env RB_FUZZ_SEED="$seed" RB_FUZZ_SECONDS="$seconds" RB_TANGLE_SEED="$seed" \
		RB_TANGLE_SECONDS="$((seconds / 2 + 1))" bash qemu/guest/tests.sh \
		"${words[0]#source=}" "${words[@]:1}" quarantine_ms="$quarantine" -- tangle fuzz &
	boot=$!
	wait "$boot" || bad=1
	boot=
	log=$RB_CACHE/out/fuzz/log
	read -r passed failed skipped < <(awk -f qemu/tally.awk "$log")
	if [ -n "$bad" ] || [ "$failed" -ne 0 ] || [ "$skipped" -ne 0 ] || [ "$passed" -eq 0 ]; then
		grep -E '^# (fuzz|[^ ]*fuzz\.c)' "$log" >&2
		say "seed $seed failed (logs in $RB_CACHE/out/fuzz)"
		die "to repeat it: make fuzz SEED=$seed${DEBUG:+ DEBUG=1}"
	fi
	rounds=$((rounds + 1))
	calls=$((calls + $(sed -n 's/.*"figure": "fuzz".*"calls": \([0-9]*\).*/\1/p' "$log")))
done
finish
