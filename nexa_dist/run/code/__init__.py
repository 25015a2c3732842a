"""The user's project and our own agent as content-addressed archives."""
