"""The user's own hosts: their keys and their cluster. Pure."""
