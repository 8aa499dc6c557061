"""Atomic files, locks, ranks and canonical JSON. Imports no torch."""
