# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Results of a whole run: counted as they come, and summed up at the end. What failed is said
# twice, where it happened and once more after the figures, since often only the end is read.

passed=0
failed=0
skipped=0
# The logs whose figures are shown, and what failed, a line each.
logs=()
failures=()
# Whether a guest's output goes to its log only.
quiet=--quiet

# count FILE: adds the results in it.
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
# guest NAME TEXT OPTION...: boots one, and adds what its tests say.
guest() {
	local name=$1 text=$2
	shift 2
	qemu/boot.sh "$name" $quiet "$@" || trouble "$text: $(cat "$RB_CACHE/out/$name/bad")"
	count "$RB_CACHE/out/$name/log"
}
# A step that fails is one failure, and the other tests go on.
try() { (step "$@"); }
# The figures, the failures, and the one line; the exit code says the same.
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
