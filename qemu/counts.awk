# SPDX-License-Identifier: GPL-2.0
#
# Converts the benchmark's lines of JSON to one line for each count: bytes, state, instructions, and
# the measured function. Needs json.awk.

/"bench": "instructions"/ && !seen[field("what") field("bytes") field("state")]++ {
	print field("bytes"), field("state"), field("least"), field("what")
}
