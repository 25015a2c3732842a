"""Training backends: one file each, and one row in `nexa_dist.config.backends.BACKENDS`."""
