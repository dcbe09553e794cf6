# SPDX-License-Identifier: GPL-2.0
#
# Reads the output of the test programs and collects the figures: each once, in words and as a line
# of JSON. The sweeps of faults are summed up. Needs json.awk.

{ at = index($0, "{\"") }
!at || !/"(figure|sweep)":/ || seen[substr($0, at)]++ { next }
/"sweep":/ {
	sweeps++
	faults += field("faults")
	survived += field("survived")
	next
}
{ show(substr($0, at)) }
END {
	if (sweeps)
		show(sprintf("{\"figure\": \"faults\", \"sweeps\": %d, \"injected\": %d, \"survived\": %d}",
			     sweeps, faults, survived))
}
function show(json,    words) {
	words = json
	sub(/^[{]"figure": "/, "", words)
	sub(/", /, ": ", words)
	gsub(/["{}]/, "", words)
	gsub(/: /, " ", words)
	sub(/ /, ": ", words)
	print "# " words
	print json
}
