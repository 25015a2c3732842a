"""The backends' own config files, as their programs know them: a slip is told before a node is asked."""
