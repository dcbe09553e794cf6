#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# soak.sh [MINUTES [SEED [DEBUG]]]: the mixed load of selftests/soak.c, in a guest. Without SEED
# each run has another one. With DEBUG=1 it runs in the debug kernel.
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"
cd "$RB_TOP" || exit 1

minutes=${1:-10}
seed=${2:-}
[[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "MINUTES=$minutes is no number"
[[ $seed =~ ^[0-9]*$ ]] || die "SEED=$seed is no number"

qemu/setup.sh || exit 1
if [ "${3:-}" = 1 ]; then
	qemu/debug-kernel.sh || exit 1
	export RB_BUILD=$RB_BUILD-debug KDIR=$RB_DEBUG KBUILD_ARGS="LLVM=1 RB_AUDIT=1"
	export KERNEL=$RB_DEBUG/rust_buddy-debug.img RB_MEMORY=3G
fi
qemu/build.sh || exit 1
failed=0
if ! qemu/boot.sh soak --timeout "$(awk -v m="$minutes" 'BEGIN { print int(m * 60) + 900 }')" -- \
	bash qemu/guest/soak.sh "$minutes" "$seed"; then
	failed=1
fi
read -r p f s < <(awk -f qemu/tally.awk "$RB_CACHE/out/soak/log")
echo "$p passed, $((f + failed)) failed, $s skipped"
[ $((f + failed)) -eq 0 ] && [ "$p" -gt 0 ]
