"""Who makes nodes: aws, local, static."""
