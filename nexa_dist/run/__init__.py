"""The effects: every external program and every file of a cluster or run passes through here."""
