"""The user's own hosts."""
