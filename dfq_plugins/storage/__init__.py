"""Files that are whole or absent, locks, ranks and canonical JSON. Imports no torch."""
