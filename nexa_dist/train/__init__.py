"""What torchrun starts on every rank: the launcher, the data, the checkpoints and the training backends."""
