"""Checkpoints whose files lie on several nodes."""
