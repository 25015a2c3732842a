"""Sections of cluster.yaml and train.yaml that have a file of their own."""
