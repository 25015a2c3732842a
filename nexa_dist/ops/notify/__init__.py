"""Who is told of a run, and what was sent."""
