"""Dead leaves images for dfq-plugins."""
