"""How a run begins: anew, where it was stopped, or once more as it was."""
