"""Trainings as jobs of Slurm: submitted, and led by the job itself."""
