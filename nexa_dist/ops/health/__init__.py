"""Diagnosis of nodes, and the gates that ask for it."""
