"""The stage filter: which completions are learned from, by rules, a rubric and people, as rows for training."""
