#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Exit 0 if KVM can really run the kernel, which /dev/kvm alone does not say: on
# some machines it is there and guests hang. So boot the kernel once, without
# anything to mount, and see whether it gets as far as complaining of that.
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"

kernel=$1
[ -w /dev/kvm ] || exit 1
answer=$RB_CACHE/kvm
# The answer is good for one machine's one boot.
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
