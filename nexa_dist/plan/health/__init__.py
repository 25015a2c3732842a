"""Health of nodes and links: what they should be like, and what is wrong with them. Pure."""
