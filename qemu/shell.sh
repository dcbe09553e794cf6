#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# A prompt in a guest that has the module loaded.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"
cd "$RB_TOP"

[ -t 0 ] || die "make shell needs a terminal"
[ -n "${KERNEL:-}" ] || qemu/setup.sh
qemu/build.sh
mkdir -p "$RB_CACHE/out"
cat >"$RB_CACHE/out/bashrc" <<RC
cd '$RB_TOP'
# poweroff may be missing, and init must not end, since that would be a panic.
trap 'sync; echo o >/proc/sysrq-trigger; while :; do :; done' EXIT
if [ ! -e /sys/module/rust_buddy ]; then
	. qemu/guest/lib.sh
	set +u
	load && dmesg | grep 'rust_buddy: ' | tail -n 2
	echo 'The module is loaded: see /dev/rust_buddy and /sys/kernel/debug/rust_buddy/pool1.'
	echo 'Tests and programs are in .cache/build/selftests. Ctrl-D ends the guest.'
fi
RC
export RB_BASHRC=$RB_CACHE/out/bashrc
qemu/boot.sh shell --append "cma=256M memmap=64M\$0x40000000"
