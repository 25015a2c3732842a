"""What a job of Slurm is: its script, its array, its price, and what its end means."""
