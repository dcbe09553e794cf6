# SPDX-License-Identifier: GPL-2.0
#
# From the benchmark's lines of JSON to one line a count: bytes, state, instructions, what. With
# json.awk.

/"bench": "instructions"/ && !seen[field("what") field("bytes") field("state")]++ {
	print field("bytes"), field("state"), field("least"), field("what")
}
