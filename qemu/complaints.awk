# SPDX-License-Identifier: GPL-2.0
#
# Prints the part of the kernel's log to search for complaints: all up to the tests' last line. A
# test announces reports of the OOM killer by the program's name. In these reports one line is left
# out: the head of the call trace. All other lines in and between the reports are kept.

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
