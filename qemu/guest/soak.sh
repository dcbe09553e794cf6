#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# soak.sh MINUTES [SEED]: the mixed load of selftests/soak.c, inside the guest, as KTAP. The
# quarantine is so short that it ends in each round.
. qemu/guest/lib.sh
. selftests/ktap.sh

minutes=$1
seed=${2:-}
leaks=/sys/kernel/debug/kmemleak

# Ignores leaks from before the module was loaded.
if [ -e $leaks ]; then
	echo scan >$leaks
	echo clear >$leaks
fi
if ! load quarantine_ms=700; then
	plan soak:load 1
	check "the module loads" false
	finish
	exit 0
fi

echo "# suite soak"
# Leaves time for one more round and a slow end. The program itself detects a worker that hangs.
limit=$(awk -v m="$minutes" 'BEGIN { print int(m * 60) + 600 }')
(cd /tmp && timeout -k 10 "$limit" "$RB_BUILD/selftests/soak" -m "$minutes" ${seed:+-s "$seed"}) 2>&1
echo "# exit $?"

no_leaks() {
	# kmemleak reports objects that are at least 5 s old and that two scans have not found.
	sleep 6
	echo scan >$leaks
	sleep 6
	echo scan >$leaks
	cat $leaks >"$RB_OUT/kmemleak-soak"
	sed 's/^/# /' "$RB_OUT/kmemleak-soak" | head -n 100
	[ ! -s "$RB_OUT/kmemleak-soak" ]
}

# The audit's findings about freed, granted and mapped memory, if it is built in.
audit=$debug/pool1/audit
if [ -e $audit ]; then
	plan soak:audit 1
	sed 's/^/# /' $audit
	check "the oracle found nothing" grep -q '^faults: 0$' $audit
	finish
fi

plan soak:unload 2
check "the module goes" rmmod rust_buddy
if [ -e $leaks ]; then
	check "nothing is left that was never freed" no_leaks
else
	skip "nothing is left that was never freed" "CONFIG_DEBUG_KMEMLEAK=y"
fi
finish
