"""Text of a training: which files, which documents or examples, which tokens."""
