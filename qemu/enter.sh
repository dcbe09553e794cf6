#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# enter.sh COMMAND...: run COMMAND where the tools are, in the same directory.
#
# That is the toolchain root if there is one, else this machine. Either way the
# mounts live in a namespace of their own: they vanish with the last process,
# and removing the root can never reach through one of them. So do processes:
# a QEMU whose caller was killed does not stay behind.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"

# Inside already, or a plain user with tools of his own.
if [ -n "${RB_INSIDE:-}" ] || [ "$(id -u)" != 0 ]; then
	exec "$@"
fi

root=
if needs_root; then
	root=$RB_ROOT
	[ -d "$root" ] || die "no toolchain root yet: run 'make setup'"
fi

# shellcheck disable=SC2016 # expanded by the inner shell
exec unshare --mount --propagation private --pid --fork --kill-child --mount-proc bash -ec '
	root=$1 kernel=$2 top=$3 cache=$4 cwd=$5
	shift 5
	# The stock kernel was unpacked, not installed; tools look for its modules here.
	if [ -d "$kernel/usr/lib/modules" ]; then
		mkdir -p "$root/usr/lib/modules"
		mount --bind "$kernel/usr/lib/modules" "$root/usr/lib/modules"
	fi
	# What the prompt of a guest starts with; it sees this machine through the mounts here.
	if [ -n "${RB_BASHRC:-}" ]; then
		touch "$root/root/.bashrc"
		mount --bind "$RB_BASHRC" "$root/root/.bashrc"
	fi
	if [ -z "$root" ]; then
		export RB_INSIDE=1
		exec "$@"
	fi
	for d in dev proc sys tmp; do
		mount --rbind "/$d" "$root/$d"
	done
	for d in "$top" "$cache"; do
		mkdir -p "$root$d"
		mount --bind "$d" "$root$d"
	done
	touch "$root/etc/resolv.conf"
	mount --bind "$(readlink -f /etc/resolv.conf)" "$root/etc/resolv.conf"
	mount --bind /etc/hosts "$root/etc/hosts" 2>/dev/null || :
	# Whom this machine trusts, the root trusts: a company may have a registry of its own.
	certs=/etc/ssl/certs/ca-certificates.crt
	if [ -s "$certs" ] && [ -e "$root$certs" ]; then
		mount --bind "$certs" "$root$certs"
	fi
	exec chroot "$root" /usr/bin/env -i RB_INSIDE=1 RB_CACHE="$cache" HOME=/root \
		PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		TERM="${TERM:-dumb}" LC_ALL=C.UTF-8 CI="${CI:-}" CARGO_HOME="$cache/cargo" \
		DEBIAN_FRONTEND=noninteractive \
		bash -c "cd \"\$0\" && exec \"\$@\"" "$cwd" "$@"
' - "$root" "$RB_KERNEL" "$RB_TOP" "$RB_CACHE" "$PWD" "$@"
