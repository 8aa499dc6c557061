"""What several adapters share: one algorithm over the backends of different frameworks.

Adapters never import each other. What two of them need stands here, knows no framework of the two, and is given what it
works on.
"""
