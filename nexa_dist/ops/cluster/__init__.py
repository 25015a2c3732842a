"""A cluster from its plan to its receipt of teardown."""
