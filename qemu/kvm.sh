#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Exits with 0 if KVM can run the kernel. /dev/kvm alone does not prove that, since guests hang on
# some machines that have it. So this boots the kernel once without a root file system, and waits
# for its message about that.
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"

kernel=$1
[ -w /dev/kvm ] || exit 1
answer=$RB_CACHE/kvm
# The result holds for one boot of one machine.
key=$(cat /proc/sys/kernel/random/boot_id)
if [ "$(head -n 1 "$answer" 2>/dev/null)" != "$key" ]; then
	word=no
	if timeout -k 2 20 "$here/enter.sh" qemu-system-x86_64 -accel kvm -m 512M -display none \
		-serial stdio -monitor none -no-reboot -kernel "$kernel" \
		-append "console=ttyS0 panic=-1" </dev/null 2>&1 | grep -q 'Unable to mount root fs'; then
		word=yes
	fi
	printf '%s\n%s\n' "$key" "$word" >"$answer"
	say "KVM works here: $word"
fi
[ "$(tail -n 1 "$answer")" = yes ]
