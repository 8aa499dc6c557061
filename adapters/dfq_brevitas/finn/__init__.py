"""What the option target=finn adds: a network in FINN's operators, one quantizer per producer, and a checked file."""
