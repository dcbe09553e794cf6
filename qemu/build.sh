#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Builds the module and the test programs into RB_BUILD (.cache/build), for the reference kernel, or
# with KDIR= for that tree, with KBUILD_ARGS. A compiler warning is an error.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"

kdir=${KDIR:-$RB_TREE}
args=("KBUILD_ARGS=${KBUILD_ARGS:-}")
if [ -z "${KDIR:-}" ]; then
	rel=$(krel)
	KBUILD_ARGS="LOCALVERSION=+${rel#*+} ${KBUILD_ARGS:-}"
	args=("KBUILD_ARGS=$KBUILD_ARGS")
fi
out=$RB_BUILD
mkdir -p "$out"

build() {
	"$here/enter.sh" make -C "$RB_TOP" KDIR="$kdir" BUILD="$out/module" "${args[@]}" modules
	# The module that walks the audit's records, if the audit is built in.
	rm -rf "$out/audit"
	case " ${KBUILD_ARGS:-} " in
	*" RB_AUDIT=1 "*)
		mkdir -p "$out/audit"
		# shellcheck disable=SC2086 # words
		"$here/enter.sh" make -C "$kdir" M="$RB_TOP/selftests/audit" MO="$out/audit" \
			$KBUILD_ARGS modules
		;;
	esac
	client || echo "no client library: cargo can't build it, and its tests are left out"
	"$here/enter.sh" make -C "$RB_TOP/selftests" KSRC="$kdir" OUTPUT="$out/selftests" \
		CLIENT="$out/client/release" all
	# The kernel's own test of dma-heaps, built from the source tree if its headers are there.
	rm -f "$out/selftests/dmabuf-heap"
	"$here/enter.sh" cc -O2 -static -I"$kdir/tools/testing/selftests" -I"$kdir/usr/include" \
		"$kdir/tools/testing/selftests/dmabuf-heaps/dmabuf-heap.c" \
		-o "$out/selftests/dmabuf-heap" 2>/dev/null || echo "no dmabuf-heap"
	example README.md example
	local page
	for page in $(cd "$RB_TOP" && grep -l '^int main' docs/*.md); do
		example "$page" "example-$(basename "$page" .md)"
	done
}
# Builds the library for programs, and its example, which is a test.
client() {
	rm -f "$out/client/release/librust_buddy_client.a" "$out/selftests/slab-rust"
	mkdir -p "$out/selftests"
	"$here/enter.sh" cargo build --quiet --release --locked --lib --examples \
		--manifest-path "$RB_TOP/lib/Cargo.toml" --target-dir "$out/client" &&
		cp "$out/client/release/examples/objects" "$out/selftests/slab-rust"
}
# example PAGE PROGRAM: compiles the example of a page, so that code to be copied is known to work.
example() {
	local to=$out/selftests/$2
	awk '/^```c$/ { on = 1; next } /^```/ { on = 0 } on' "$RB_TOP/$1" >"$to.c"
	"$here/enter.sh" cc -Wall -Wextra -Werror -I"$RB_TOP/src/uapi" "$to.c" -o "$to"
}
step build "building the module and the tests" build
if grep -n 'warning' "$RB_LOGS/build.log" | grep -v 'gcc-multilib'; then
	die "the compiler warned (whole log in $RB_LOGS/build.log)"
fi
