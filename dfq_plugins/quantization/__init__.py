"""Quantizes a network with one framework: `run` calibrates, `finetune` also trains."""
