"""The known ways to fail, one file for each kind of cause."""
