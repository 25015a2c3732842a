"""Verbs of a cluster: made, looked at, given back."""
