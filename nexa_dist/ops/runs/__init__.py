"""A run from its launch to its manifest."""
