# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# KTAP for tests that are shell scripts. A script sources this file and calls `plan N`. Then it
# calls `check NAME COMMAND...` for each test, which passes if COMMAND exits with 0, and `finish`.
#
#   RB_CHECK=NAME   only the check of this name; all others are skipped

ktap_seen=0
ktap_bad=0

plan() {
	echo "# suite $1"
	echo "1..$2"
}

check() {
	local name=$1
	shift
	if [ "${RB_CHECK:-$name}" != "$name" ]; then
		skip "$name" "not asked for"
		return
	fi
	ktap_seen=$((ktap_seen + 1))
	if "$@"; then
		echo "ok $ktap_seen $name"
	else
		echo "not ok $ktap_seen $name"
		ktap_bad=$((ktap_bad + 1))
	fi
}

skip() {
	ktap_seen=$((ktap_seen + 1))
	echo "ok $ktap_seen $1 # SKIP $2"
}

finish() {
	echo "# exit $((ktap_bad > 0))"
}
