# SPDX-License-Identifier: GPL-2.0
#
# Reads the output of the test programs and counts the results. A program that dies, hangs or prints
# fewer results than planned is one more failure, so missing output never passes. Failed and skipped
# tests go to stderr, with the last messages of a failed test.

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
function fail(why,    i) {
	failed++
	for (i = words > 12 ? words - 12 : 0; i < words; i++)
		print "  " word[i] > "/dev/stderr"
	print "failed: " suite ": " why > "/dev/stderr"
}
# Keeps a test's messages until its result.
/^# / && !/^# (suite|exit) / { word[words++] = substr($0, 1, 300) }
/^# suite / { finish(); words = 0; suite = $3; planned = -1; seen = 0; bad = 0; code = "" }
/^1\.\.[0-9]+/ {
	planned = substr($1, 4) + 0
	if (/# SKIP/) { skipped++; print "skipped: " suite ": " $0 > "/dev/stderr" }
}
/^ok [0-9]/ {
	seen++
	words = 0
	if (/# SKIP/) { skipped++; print "skipped: " suite ": " $0 > "/dev/stderr" } else passed++
}
/^not ok [0-9]/ { seen++; bad++; fail($0); words = 0 }
/^# exit / { code = $3 }
# Results of the host's tests, from cargo test.
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
