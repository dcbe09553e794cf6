# SPDX-License-Identifier: GPL-2.0
#
# Prints what of the kernel's log is to be searched for complaints: all until the
# tests' last word, but for one line in each report of the OOM killer that a test
# has announced, by name: the head of its call trace, which is no complaint there.
# Whatever else is in or between such reports stays.

FNR == 1 { over = 0; name = ""; report = 0 }
{ sub(/\r$/, "") }
/rust_buddy: end of script/ { over = 1 }
over { next }
/rust_buddy: test expects OOM kills of / { name = $NF }
/rust_buddy: test expects no more OOM kills/ { name = "" }
name != "" && index($0, " " name " invoked oom-killer: ") { report = 1 }
index($0, ": Killed process ") { report = 0 }
report && /Call Trace:$/ { report = 0; next }
{ print }
