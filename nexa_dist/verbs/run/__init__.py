"""Verbs of a run: begun, followed, ended, explained."""
