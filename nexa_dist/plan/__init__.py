"""Pure functions: from a cluster and a config to what will be done. No I/O, no clock."""
