# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Results of a whole run: counted as they come, and summed up at the end. Failures are printed
# twice, where they happen and after the figures, since a reader may look at the end only.

passed=0
failed=0
skipped=0
# The logs with figures to show, and the failures, a line each.
logs=()
failures=()
# Whether a guest's output goes to its log only.
quiet=--quiet

# count FILE: adds the results in FILE.
count() {
	local p f s line told
	told=$(mktemp)
	logs+=("$1")
	read -r p f s < <(awk -f qemu/tally.awk "$1" 2>"$told")
	cat "$told" >&2
	while read -r line; do
		failures+=("$line")
	done < <(sed -n 's/^failed: //p' "$told")
	rm -f "$told"
	passed=$((passed + p))
	failed=$((failed + f))
	skipped=$((skipped + s))
}
pass() { passed=$((passed + 1)); }
trouble() {
	say "failed: $*"
	failures+=("$*")
	failed=$((failed + 1))
}
# guest NAME TEXT OPTION...: boots a guest, and adds the results of its tests.
guest() {
	local name=$1 text=$2
	shift 2
	qemu/boot.sh "$name" $quiet "$@" || trouble "$text: $(cat "$RB_CACHE/out/$name/bad")"
	count "$RB_CACHE/out/$name/log"
}
# Runs a step in a subshell, so that its failure does not end the run.
try() { (step "$@"); }
# Prints figures, failures and the summary line. The exit code agrees with it.
finish() {
	local line
	[ ${#logs[@]} -eq 0 ] || awk -f qemu/json.awk -f qemu/figures.awk "${logs[@]}"
	for line in "${failures[@]}"; do
		echo "failed: $line"
	done
	echo "$passed passed, $failed failed, $skipped skipped"
	[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
	exit
}
