"""Lets `python -m dfq_plugins` stand in for `dfq` where scripts are not on the path."""

from dfq_plugins.cli import main

if __name__ == "__main__":
    main()
