# SPDX-License-Identifier: GPL-2.0
#
# For other awk scripts: what a line of JSON, of one object without others in it, has under a name;
# "-" if nothing.

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
