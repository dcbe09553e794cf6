# SPDX-License-Identifier: GPL-2.0
#
# Compares recorded counts with current ones, both in the format of counts.awk. The module's counts
# may be at most 5 % more than recorded, and have to be far below those of cma_alloc. Lower counts
# should be committed. For the requests of KUnit's test the core may not need more than gpu_buddy.

/^#/ || NF < 4 { next }
{
	count = $3
	what = $4
	for (i = 5; i <= NF; i++)
		what = what " " $i
	key = what ", " $1 " bytes, " $2
}
FNR == NR { known[key] = count; next }
{ now[key] = count }
what == "cma_alloc" { cma[$1] = count }
what ~ /^core/ && $2 ~ /^(empty|half)$/ && count > most[$1] { most[$1] = count }
$2 ~ /^(pieces|halves)$/ { trace[what, $2] = count }
END {
	for (i = split("pieces halves", states); i > 0; i--) {
		ours = trace["core", states[i]]
		theirs = trace["gpu_buddy", states[i]]
		if (!ours || ours > theirs) {
			print states[i] ": " ours + 0 " instructions, gpu_buddy " theirs + 0
			bad++
		}
		compared++
	}
	for (key in known) {
		compared++
		if (!(key in now)) {
			print "not measured: " key
			bad++
		} else if (now[key] > known[key] * 1.05) {
			print key ": " now[key] " instructions, " known[key] " in " name
			bad++
		} else if (now[key] < known[key] * 0.95) {
			print key ": only " now[key] " instructions, " known[key] " in " name
		}
	}
	for (bytes in most) {
		if (most[bytes] * 5 > cma[bytes]) {
			print bytes " bytes: " most[bytes] " instructions, cma_alloc " cma[bytes]
			bad++
		}
		compared++
	}
	print compared " counts compared, " bad + 0 " too high"
	exit !compared || bad > 0
}
