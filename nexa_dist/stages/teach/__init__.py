"""The stage teach: completions of a teacher for every row, asked once each, whatever happens meanwhile."""
