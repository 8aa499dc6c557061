"""What is asked of a network that somebody brings: loading, specification, digest, cost and memory."""
