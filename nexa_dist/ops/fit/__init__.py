"""Before a run: whether a training fits, and what of it a person has to change."""
