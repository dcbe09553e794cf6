# SPDX-License-Identifier: GPL-2.0
#
# Prints the benchmarks' lines of JSON as tables. Needs json.awk.

/"bench": "instructions"/ {
	printf "%8d KiB  %-7s %-30s %9d\n", field("bytes") / 1024, field("state"), field("what"),
	       field("median")
}
/"bench": "tail"/ {
	printf "%8d KiB  %-22s %6d of %6d  p50 %9.1f  p99 %9.1f  p99.99 %9.1f  max %9.1f us\n",
	       field("bytes") / 1024, field("what"), field("served"), field("requests"),
	       field("p50_ns") / 1000, field("p99_ns") / 1000, field("p99.99_ns") / 1000,
	       field("max_ns") / 1000
}
