"""Verbs of the command line: what each prints and returns. The work is in ops; the words are here."""
