"""Stored BatchNorm statistics, observed batch statistics, and the divergence between them."""
