"""What nodes and links should be like, and what is wrong with them. Pure."""
