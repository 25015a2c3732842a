"""Checks that the agent repeats during an attempt: progress, hangs, controller lease, deadline, spot notice."""
