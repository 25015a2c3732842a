"""Work that a lab brings to a run and takes away from it: environments, data, results."""
