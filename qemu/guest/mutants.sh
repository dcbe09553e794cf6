#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# mutants.sh LIST SECONDS: loads one module after the other, and runs the one test that has to fail
# with it. A line of LIST: name, folder with module/ and selftests/, program, test, parameters,
# and the regular expression of a kernel complaint that has to come, or nothing; separated by
# tabs. Ends early if the kernel can't be trusted any more.
. qemu/guest/lib.sh

list=$1
limit=$2
echo 30 >/proc/sys/kernel/hung_task_timeout_secs
echo 1 >/proc/sys/kernel/sysrq

# run DIR PROGRAM TEST: runs all variants. A script loads the module itself.
run() {
	case $2 in
	*.sh) RB_BUILD=$1 RB_CHECK=$3 timeout -k 5 "$limit" bash "selftests/$2" 2>&1 ;;
	*) (cd /tmp && RB_KO=$1/module/rust_buddy.ko timeout -k 5 "$limit" "$1/selftests/$2" -t "${3##*.}") 2>&1 ;;
	esac
}

leaks=/sys/kernel/debug/kmemleak
# scan: has the kernel look for memory that nothing points to. It wants an object to be 5 s old, and
# to miss it in two scans.
scan() {
	for _ in 1 2; do
		sleep 6
		echo scan >$leaks
	done
}
# complained ID REGEX: says whether the kernel did, since ID began.
complained() {
	if dmesg | sed -n "/mutant $1 begins/,\$p" | grep -E "$2"; then
		echo "not ok 1 complaint"
	else
		echo "ok 1 complaint"
	fi
}

while IFS=$'\t' read -r id dir program test load complaint <&5; do
	echo "# mutant $id begins"
	echo "mutant $id begins" >/dev/kmsg
	case "$complaint" in
	kmemleak*)
		echo scan >$leaks
		echo clear >$leaks
		;;
	esac
	case "$load" in
	*quarantine_ms=*) ;;
	*) load+=" quarantine_ms=0" ;;
	esac
	# Crashes the guest after a while, since a task that can't be killed would block it.
	(sleep $((limit + 15)) && echo c >/proc/sysrq-trigger) 5<&- &
	watch=$!
	# shellcheck disable=SC2086 # words
	case $program in
	*.sh) run "$dir" "$program" "$test" 5<&- ;;
	*) insmod "$dir/module/rust_buddy.ko" $load && run "$dir" "$program" "$test" 5<&- ;;
	esac
	kill $watch
	if [ -n "$complaint" ]; then
		case "$complaint" in
		kmemleak*) rmmod rust_buddy && scan ;;
		esac
		complained "$id" "$complaint"
	fi
	echo "# mutant $id ended"
	if grep -q '^rust_buddy ' /proc/modules; then
		# A killed task may hold the module for a moment.
		for _ in $(seq 20); do
			rmmod rust_buddy 2>/dev/null && break
			sleep 0.1
		done
		grep -q '^rust_buddy ' /proc/modules && exit 0
	fi
	dmesg | grep -qE 'BUG:|Oops|[Bb]ad page|general protection|possible circular locking' && exit 0
done 5<"$list"
exit 0
