"""Optimizes inputs until a network's statistics match, shard by shard; `run` holds `synthesize`."""
