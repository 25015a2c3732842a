"""What fits: the parameters of a model, the memory of a rank, the time and the money of a training. Pure."""
