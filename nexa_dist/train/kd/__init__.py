"""A student learns from a teacher: the loss, and where the teacher's distribution of each token comes from."""
