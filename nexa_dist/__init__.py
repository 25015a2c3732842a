"""NexaCompute: rent spot GPUs for a day, train on several nodes, give everything back."""

__version__ = "0.1.0"
