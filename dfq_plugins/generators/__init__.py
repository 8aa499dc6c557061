"""Built-in data generators, one file each."""
