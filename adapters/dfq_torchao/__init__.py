"""Adapter for torchao's PT2E flow: export, observe, convert, and compile for any backend that has a quantizer."""
