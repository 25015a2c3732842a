"""Slurm: its commands, and the nodes of a job by its steps."""
