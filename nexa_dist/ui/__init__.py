"""Display: the terminal, and the view of a run."""
