# SPDX-License-Identifier: GPL-2.0
#
# A function for other awk scripts. It returns a field of a line of JSON, or "-" if the line has no
# field of that name. The line is one object without nested ones.

function field(name,    part) {
	if (match($0, "\"" name "\": \"[^\"]*\"")) {
		part = substr($0, RSTART, RLENGTH - 1)
		sub(/^[^:]*: "/, "", part)
		return part
	}
	if (match($0, "\"" name "\": [0-9]+"))
		return substr($0, RSTART + length(name) + 4, RLENGTH - length(name) - 4)
	return "-"
}
