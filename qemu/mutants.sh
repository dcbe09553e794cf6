#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# mutants.sh [check]: breaks one property at a time and requires that the named test fails.
# mutants.sh table:   writes the table of all mutants into docs/testing.md.
# mutants.sh table-check: tells whether that table is up to date.
#
# Variables:
#
#   ONLY=GLOB   only the mutants of these names
#   DEBUG=1     in the debug kernel, which some need
#
# A mutant is a patch in selftests/mutants/, which begins with
#
#   Breaks: SENTENCE         the property, as it is broken
#   Caught-by: PROGRAM TEST  TEST as the harness prints it, with or without a variant. PROGRAM may
#                            also be a script of selftests/ with the name of a check, or "host" with
#                            the name of a host test
#   Load: PARAMETER...       of the module (default: source=contig)
#   Memory: 4G               of the guest
#   Kernel: debug            only with DEBUG=1, like all mutants that PROGRAM faults catches
#   Boot: WORDS              on the guest's command line, beside cma= and memmap=
#   Cpu: MODEL               of the guest, if QEMU's default does not suffice
#   Complaint: REGEX         the kernel complains so while TEST runs, which catches the mutant whatever TEST says
#
# The unmutated module has to pass each named test in the same guest first.
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/config.sh"
. "$here/lib.sh"
cd "$RB_TOP" || exit 1

folder=selftests/mutants
work=$RB_BUILD/mutants
name=mutants${RB_NAME:+-$RB_NAME}
# Mutants in one guest, and the seconds for each of them there.
most=16
limit=150

# field PATCH NAME: prints a field of the patch's head.
field() { sed -n "/^---/q;s/^$2: *//p" "$1" | head -n 1; }
id_of() { basename "$1" .patch; }
patches() {
	local file
	for file in "$folder"/*.patch; do
		# shellcheck disable=SC2053 # a glob, on purpose
		[[ $(id_of "$file") == ${ONLY:-*} ]] || continue
		if [ "${DEBUG:-}" != 1 ] && wants_debug "$file"; then
			say "not tried without DEBUG=1: $(id_of "$file")"
		else
			echo "$file"
		fi
	done
}
wants_debug() { [ "$(field "$1" Kernel)" = debug ] || [[ $(field "$1" Caught-by) == "faults "* ]]; }
state() { cat "$work/$1/state" 2>/dev/null; }
set_state() { echo "$2" >"$work/$1/state"; }

# Prints a checksum of the files that determine a mutant's build.
sources() { find Kbuild Makefile rust_buddy.rs src selftests/host lib dist -type f -not -path '*/target/*' -print0 |
	sort -z | xargs -0 cat | cksum; }

# host_test TREE NAME LOG: returns 0 if the test passes, 1 if it fails, 2 if it does not build, and
# 3 if no test ran.
host_test() {
	local cargo=(qemu/enter.sh env CARGO_TARGET_DIR="$work/target.${SLOT:-0}" cargo test --locked
		--manifest-path "$1/selftests/host/Cargo.toml")
	"${cargo[@]}" --no-run >"$3" 2>&1 || return 2
	timeout -k 10 300 "${cargo[@]}" --no-fail-fast -- --test-threads=1 "$2" >"$3" 2>&1
	if grep -qE "^test .*\b$2\b.* \.\.\. .*FAILED" "$3" || tail -n 1 "$3" | grep -qE "^test .*\b$2\b"; then
		return 1
	fi
	grep -qE "^test .*\b$2\b.* \.\.\. ok" "$3" || return 3
}

# build_one PATCH KEY: builds the mutated module, or determines the result of a host test.
build_one() {
	local patch=$1 id key program test rc=0
	id=$(id_of "$patch")
	local to=$work/$id tree=$work/tree.$SLOT mo=$work/mo.$SLOT
	read -r program test <<<"$(field "$patch" Caught-by)"
	mkdir -p "$to/module"
	key="$2 $(cksum <"$patch")"
	if [ "$(cat "$to/key" 2>/dev/null)" = "$key" ]; then
		# The result of a host test stays valid. A test in the guest runs again.
		[ "$program" = host ] || set_state "$id" built
		return 0
	fi
	rm -rf "$tree" "$mo" "$to/key" "$to/module/rust_buddy.ko"
	mkdir -p "$tree" "$mo"
	set_state "$id" "does not build"
	cp -a Kbuild Makefile rust_buddy.rs src lib dist "$tree"
	mkdir "$tree/selftests"
	cp -a selftests/host "$tree/selftests"
	if ! patch -p1 -s -f -F 3 -d "$tree" <"$patch" >"$to/log" 2>&1; then
		set_state "$id" "does not apply"
		return 0
	fi
	if [ "$program" = host ]; then
		host_test "$tree" "$test" "$to/log" || rc=$?
		case $rc in
		0) set_state "$id" survives ;;
		1) set_state "$id" caught ;;
		2) return 0 ;;
		*) set_state "$id" "not run" ;;
		esac
		echo "$key" >"$to/key"
		return 0
	fi
	qemu/enter.sh make -C "$tree" KDIR="${KDIR:-$RB_TREE}" BUILD="$mo" \
		KBUILD_ARGS="$KBUILD_ARGS" modules >"$to/log" 2>&1 || return 0
	qemu/enter.sh strip --strip-debug "$mo/rust_buddy.ko" -o "$to/module/rust_buddy.ko" || return 0
	ln -sfn "$RB_BUILD/selftests" "$to/selftests"
	# Scripts take the installed files from here.
	rm -rf "$to/dist"
	cp -a "$tree/dist" "$to/dist"
	echo "$key" >"$to/key"
	set_state "$id" built
}

# pattern TEST: prints the harness's name of the test as a pattern, for any variant if none is
# named.
pattern() {
	case $1 in
	*" "*) echo "$1" ;;
	*.*.*) echo "${1//./\\.}" ;;
	*.*) echo "${1%.*}(\.[a-zA-Z0-9_]+)?\.${1#*.}" ;;
	*) echo "(global\.)?$1" ;;
	esac
}

# judge LIST LOG: sets the state of each line of LIST that the guest reached. Returns 1 if it did
# not reach all of them.
judge() {
	local id dir program test load complaint said re left=0
	while IFS=$'\t' read -r id dir program test load complaint; do
		said=$(sed -n "/^# mutant $id begins/,/^# mutant $id ended/p" "$2" | tr -d '\r')
		[ -z "$complaint" ] || test=complaint
		re=$(pattern "$test")
		if [ -z "$said" ]; then
			left=1
		elif grep -qE "^not ok [0-9]+ (- )?$re( |$)" <<<"$said"; then
			set_state "$id" caught
		elif grep -qE "^ok [0-9]+ (- )?$re .*# SKIP" <<<"$said"; then
			set_state "$id" "test skipped"
		elif grep -qE "^ok [0-9]+ (- )?$re( |$)" <<<"$said"; then
			set_state "$id" survives
		elif ! grep -qE "RUN +$re |^# suite" <<<"$said"; then
			set_state "$id" "not run"
		elif grep -q "^# mutant $id ended" <<<"$said"; then
			set_state "$id" "caught, the test never ended"
		else
			set_state "$id" "caught, the guest died"
		fi
		printf '%s\n' "$said" >"$work/$id/guest"
	done <"$1"
	return "$left"
}

# guests MEMORY BOOT CPU LIST: boots guests until each line of LIST has its state.
guests() {
	local list=$work/list n before
	cp "$4" "$list"
	while [ -s "$list" ]; do
		n=$(wc -l <"$list")
		RB_MEMORY=${1:-${DEBUG:+3G}} RB_CPU=$3 qemu/boot.sh "$name" --quiet --timeout $((600 + n * (limit + 20))) \
			--append "cma=256M memmap=64M\$0x40000000 oops=panic $2" -- \
			bash qemu/guest/mutants.sh "$list" "$limit" 2>"$work/boot.log"
		judge "$list" "$RB_CACHE/out/$name/log" && return 0
		# The lines that the guest did not reach run in another one.
		before=$n
		while IFS=$'\t' read -r id rest; do
			grep -q "^# mutant $id begins" "$RB_CACHE/out/$name/log" || printf '%s\t%s\n' "$id" "$rest"
		done <"$list" >"$list.rest"
		mv "$list.rest" "$list"
		if [ "$(wc -l <"$list")" -eq "$before" ]; then
			cat "$work/boot.log" >&2
			say "the guest does not come up (logs in $RB_CACHE/out/$name)"
			return 1
		fi
	done
}

# Prints the generated table.
rows() {
	local file by
	echo "| mutant | fault | caught by |"
	echo "|---|---|---|"
	for file in "$folder"/*.patch; do
		by=$(field "$file" Caught-by)
		echo "| \`$(id_of "$file")\` | $(field "$file" Breaks) | \`$by\` |"
	done
}
# with_table: prints docs/testing.md with the current table.
with_table() {
	local table
	table=$(rows)
	awk -v table="$table" '
		/^<!-- mutants: begin -->/ { print; print table; on = 1 }
		/^<!-- mutants: end -->/ { on = 0 }
		!on && !/^<!-- mutants: begin -->/' docs/testing.md
}

case ${1:-check} in
build-one)
	build_one "$2" "$3"
	exit
	;;
table)
	with_table >"docs/testing.md.new" && mv docs/testing.md.new docs/testing.md
	exit
	;;
table-check)
	with_table | diff docs/testing.md - || die "docs/testing.md lacks mutants: run qemu/mutants.sh table"
	exit
	;;
check) ;;
*) die "mutants.sh: unknown command $1" ;;
esac

if [ -z "${KERNEL:-}" ]; then
	qemu/setup.sh || exit 1
	rel=$(krel)
	export KBUILD_ARGS=${KBUILD_ARGS-LOCALVERSION=+${rel#*+}}
fi
if [ "${DEBUG:-}" = 1 ]; then
	qemu/debug-kernel.sh || exit 1
	export RB_BUILD=$RB_BUILD-debug KDIR=$RB_DEBUG KBUILD_ARGS="LLVM=1 RB_AUDIT=1"
	export KERNEL=$RB_DEBUG/rust_buddy-debug.img
	work=$RB_BUILD/mutants
fi
[ -n "${RB_NO_BUILD:-}" ] || qemu/build.sh || exit 1
start=$SECONDS
mkdir -p "$work"
mapfile -t all < <(patches)
[ ${#all[@]} -gt 0 ] || die "no mutant is called ${ONLY:-*}"

say "building ${#all[@]} mutants ..."
printf '%s\n' "${all[@]}" |
	RB_MUTANTS_KEY=$(sources) xargs -P "$(nproc)" --process-slot-var=SLOT -I{} \
		bash -c 'exec qemu/mutants.sh build-one "$1" "$RB_MUTANTS_KEY"' - {}
say "  done in $((SECONDS - start)) s"

# Runs each of the host's tests once on the unmutated tree.
bad=()
for test in $(for file in "${all[@]}"; do field "$file" Caught-by | sed -n 's/^host //p'; done | sort -u); do
	SLOT=0 host_test . "$test" "$work/host.log" || bad+=("the unmutated tree fails: host $test")
done

# Makes batches of mutants that boot alike, each with the unmutated module for the same tests.
rm -f "$work"/batch.*
batches=0
declare -A size open
for file in "${all[@]}"; do
	id=$(id_of "$file")
	[ "$(state "$id")" = built ] || continue
	kind="$(field "$file" Memory)|$(field "$file" Boot)|$(field "$file" Cpu)"
	if [ -z "${open[$kind]:-}" ] || [ "${size[${open[$kind]}]}" -ge "$most" ]; then
		batches=$((batches + 1))
		open[$kind]=$batches
		size[$batches]=0
		echo "$kind" >"$work/batch.$batches.kind"
	fi
	n=${open[$kind]}
	size[$n]=$((size[$n] + 1))
	read -r program test <<<"$(field "$file" Caught-by)"
	load=$(field "$file" Load)
	printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$id" "$work/$id" "$program" "$test" \
		"${load:-source=contig}" "$(field "$file" Complaint)" >>"$work/batch.$n.mutants"
done
known=
for ((n = 1; n <= batches; n++)); do
	i=0
	: >"$work/batch.$n"
	while IFS=$'\t' read -r program test load complaint; do
		# The unmutated module has passed this test in another guest.
		grep -qxF "$program $test $load $complaint" <<<"$known" && continue
		known+=$'\n'"$program $test $load $complaint"
		i=$((i + 1))
		mkdir -p "$work/unmutated-$n-$i"
		rm -f "$work/unmutated-$n-$i/state"
		printf '%s\t%s\t%s\t%s\t%s\t%s\n' "unmutated-$n-$i" "$RB_BUILD" "$program" "$test" "$load" \
			"$complaint" >>"$work/batch.$n"
	done < <(cut -f 3- "$work/batch.$n.mutants" | sort -u)
	cat "$work/batch.$n.mutants" >>"$work/batch.$n"
	IFS='|' read -r memory boot cpu <"$work/batch.$n.kind"
	say "guest $n of $batches: ${size[$n]} mutants ..."
	guests "$memory" "$boot" "$cpu" "$work/batch.$n" || bad+=("guest $n")
	while IFS=$'\t' read -r id _ program test load _; do
		case $id:$(state "$id") in
		unmutated-*:survives | [!u]*:* | u[!n]*:*) ;;
		*) bad+=("the unmutated module fails: $program $test ($load): $(state "$id")") ;;
		esac
	done <"$work/batch.$n"
done

caught=0
for file in "${all[@]}"; do
	id=$(id_of "$file")
	case $(state "$id") in
	caught*) caught=$((caught + 1)) ;;
	*) bad+=("$id: $(state "$id")") ;;
	esac
	printf '%-32s %-30s %s\n' "$id" "$(state "$id")" "$(field "$file" Caught-by)"
done
say "$((SECONDS - start)) s for ${#all[@]} mutants (logs in $work)"
for line in "${bad[@]}"; do
	echo "failed: $line"
done
echo "$caught of ${#all[@]} mutants caught"
[ ${#bad[@]} -eq 0 ] && [ "$caught" -eq ${#all[@]} ]
