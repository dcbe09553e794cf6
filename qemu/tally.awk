# SPDX-License-Identifier: GPL-2.0
#
# Reads what the test programs printed and counts. A program that dies, hangs or
# prints fewer results than it planned is one more failure: silence never passes.
# With -v names=1 prints what failed and what was skipped.

function finish(    missing) {
	if (suite == "")
		return
	missing = planned - seen
	if (planned < 0) {
		fail("printed no plan")
	} else if (missing > 0) {
		fail("stopped after " seen " of " planned " tests")
	} else if (code != 0 && code != 4 && bad == 0) {
		fail("exit " code " without a failed test")
	} else if (code == "") {
		fail("never ended")
	}
	suite = ""
}
function fail(why) {
	failed++
	print "failed: " suite ": " why > "/dev/stderr"
}
/^# suite / { finish(); suite = $3; planned = -1; seen = 0; bad = 0; code = "" }
/^1\.\.[0-9]+/ {
	planned = substr($1, 4) + 0
	if (/# SKIP/) { skipped++; print "skipped: " suite ": " $0 > "/dev/stderr" }
}
/^ok [0-9]/ {
	seen++
	if (/# SKIP/) { skipped++; print "skipped: " suite ": " $0 > "/dev/stderr" } else passed++
}
/^not ok [0-9]/ { seen++; bad++; fail($0) }
/^# exit / { code = $3 }
# The host's: cargo test.
/^test result: / {
	for (i = 1; i <= NF; i++) {
		if ($(i + 1) ~ /^passed/) passed += $i
		if ($(i + 1) ~ /^failed/) failed += $i
		if ($(i + 1) ~ /^ignored/) skipped += $i
	}
}
END {
	finish()
	printf "%d %d %d\n", passed, failed, skipped
}
