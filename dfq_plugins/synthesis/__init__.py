"""Optimizes inputs to match a network's statistics, shard by shard; `synthesize` is in `run`."""
