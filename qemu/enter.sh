#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# enter.sh COMMAND...: runs COMMAND with the tools available, in the current directory.
#
# The tools are in the toolchain root if there is one, else on this machine. In both cases the
# mounts are in a separate namespace. They vanish with the last process, so removing the root never
# reaches through one of them. Processes have a namespace, too, so a QEMU ends with its caller.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"

# Already inside, or an unprivileged user with installed tools.
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
	# The stock kernel was unpacked and not installed. Tools look for its modules here.
	if [ -d "$kernel/usr/lib/modules" ]; then
		mkdir -p "$root/usr/lib/modules"
		mount --bind "$kernel/usr/lib/modules" "$root/usr/lib/modules"
	fi
	# The start file for the prompt of a guest, which sees this machine through these mounts.
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
	# The root trusts the same certificates as this machine, since a company may run its own
	# registry.
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
