"""Provider slurm: the nodes of a cluster are the allocation of one job."""
