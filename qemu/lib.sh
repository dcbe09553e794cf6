# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Progress messages: every long step prints its name, a sign of life while it runs, its duration,
# and the end of its log when it fails.

say() { printf '%s\n' "rust_buddy: $*" >&2; }
die() { say "$*"; exit 1; }

# Prints the last line with text of a log, which may also contain progress bars.
last_words() { tr '\r' '\n' <"$1" | grep -v '^[[:space:]]*$' | tail -n 1 | cut -c 1-100; }

# step NAME TEXT COMMAND...: runs COMMAND with its output in a log of that name.
step() {
	local name=$1 text=$2 start=$SECONDS log pid rc=0 beat
	shift 2
	mkdir -p "$RB_LOGS"
	log=$RB_LOGS/$name.log
	say "$text ..."
	"$@" >"$log" 2>&1 &
	pid=$!
	beat=$((SECONDS + 15))
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.2
		if [ "$SECONDS" -ge "$beat" ]; then
			beat=$((SECONDS + 15))
			say "  $((SECONDS - start)) s: $(last_words "$log")"
		fi
	done
	wait "$pid" || rc=$?
	if [ "$rc" -ne 0 ]; then
		tail -n 20 "$log" >&2
		die "failed: $text (exit $rc, whole log in $log)"
	fi
	say "  done in $((SECONDS - start)) s"
}

# once NAME KEY TEXT COMMAND...: a step that is skipped if it was already done for the same KEY (a
# string that determines its result).
once() {
	local name=$1 key=$2
	if [ "$(cat "$RB_STAMPS/$name" 2>/dev/null)" = "$key" ]; then
		return 0
	fi
	shift 2
	step "$name" "$@"
	mkdir -p "$RB_STAMPS"
	printf '%s' "$key" >"$RB_STAMPS/$name"
}

# Tells whether this machine needs the toolchain root. Debian derivatives have version numbers of
# their own, so every system that is not Debian itself gets the root.
needs_root() {
	# shellcheck source=/dev/null
	. /etc/os-release
	[ "${ID:-}" != debian ] || [ "${VERSION_ID:-0}" -lt "$RB_DEBIAN_MIN" ]
}

# Prints the kernel release that setup chose.
krel() { cat "$RB_CACHE/krel" 2>/dev/null || echo "$RB_KREL"; }
