"""Strict schemas of cluster.yaml and train.yaml. `load` is the door; importing this package costs nothing."""
