"""Logs and events of the nodes: streamed, mirrored, read."""
