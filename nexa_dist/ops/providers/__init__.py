"""Providers of nodes: aws, local, stack, static."""
