"""Keys of train.yaml for the schedulers of clusters that others run."""
