"""Built-in data generators, one file each."""

DEFAULT_GENERATOR = "bns"
"""The generator that won the comparison in docs/benchmarks.md."""
