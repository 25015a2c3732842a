"""Sections of cluster.yaml that have a file of their own."""
