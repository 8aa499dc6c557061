"""The option target=finn: a network built from FINN's operators, one quantizer per producer, and a checked file."""
