"""Models that answer: a run of a server, and the names that runs are promoted to."""
