# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# For scripts that run inside the guest.

set -u
RB_BUILD=${RB_BUILD:-$PWD/.cache/build}
RB_KO=$RB_BUILD/module/rust_buddy.ko
debug=/sys/kernel/debug/rust_buddy

mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null

load() { insmod "$RB_KO" "$@"; }
