"""Verbs of money: what was spent, what may be, and where the time went."""
