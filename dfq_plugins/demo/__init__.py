"""The embedded default: a small digit classifier, its data, and the run behind `dfq demo`."""
