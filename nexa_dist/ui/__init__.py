"""What a person sees: the terminal, and the view of a run."""
