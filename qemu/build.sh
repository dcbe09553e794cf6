#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Build the module and the test programs into .cache/build: for the reference
# kernel, or with KDIR= for that tree. A warning of the compiler is an error.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"

kdir=${KDIR:-$RB_TREE}
args=()
if [ -z "${KDIR:-}" ]; then
	rel=$(krel)
	args+=("KBUILD_ARGS=LOCALVERSION=+${rel#*+}")
fi
out=$RB_CACHE/build
mkdir -p "$out"

build() {
	"$here/enter.sh" make -C "$RB_TOP" KDIR="$kdir" BUILD="$out/module" "${args[@]}" modules
	"$here/enter.sh" make -C "$RB_TOP/selftests" KSRC="$kdir" OUTPUT="$out/selftests" all
}
step build "building the module and the tests" build
if grep -n 'warning' "$RB_LOGS/build.log" | grep -v 'gcc-multilib'; then
	die "the compiler warned (whole log in $RB_LOGS/build.log)"
fi
