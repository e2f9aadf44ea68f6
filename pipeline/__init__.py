"""Slow-fast adapters for flow-matching text-to-image models."""
