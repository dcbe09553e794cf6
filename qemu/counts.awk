# SPDX-License-Identifier: GPL-2.0
#
# From the benchmark's lines of JSON to one line a count: bytes, state, instructions, what.

function field(name,    part) {
	if (!match($0, "\"" name "\": \"?[^\",}]*(, (lowest|64 in a batch|64 apart))?"))
		return "-"
	part = substr($0, RSTART, RLENGTH)
	sub(/^"[a-z]*": "?/, "", part)
	return part
}
/"bench": "instructions"/ && !seen[field("what") field("bytes") field("state")]++ {
	print field("bytes"), field("state"), field("least"), field("what")
}
