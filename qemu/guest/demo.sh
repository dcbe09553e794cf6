#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The demo, inside the guest: load, show, unload.
. qemu/guest/lib.sh

echo "This is Linux $(uname -r), as Debian ships it. Loading rust_buddy.ko:"
load size_mb=64 || exit 1
dmesg | grep -o 'rust_buddy: [0-9i].*' | tail -n 2 | sed 's/^/    /'
"$RB_BUILD/selftests/demo" || exit 1
rmmod rust_buddy || exit 1
echo
echo "rmmod: the memory is the kernel's again."
