"""Verbs of what a lab brings to its runs and takes away from them."""
