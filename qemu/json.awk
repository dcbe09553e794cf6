# SPDX-License-Identifier: GPL-2.0
#
# A function for other awk scripts. It returns a field of a line of JSON, which has one object
# without nested ones, or "-" if it has no field of that name.

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
