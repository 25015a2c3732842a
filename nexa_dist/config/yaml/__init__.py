"""Strict YAML: text to plain data, and where each key stands."""
