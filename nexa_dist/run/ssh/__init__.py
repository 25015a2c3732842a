"""The system's ssh: keys, pinned hosts, shared connections."""
