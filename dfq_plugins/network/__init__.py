"""Working with the user's network: loading, input specification, digest, cost and memory."""
