"""What runs on a cluster node: standard library only, one file, Python 3.9 or newer."""
