"""Stages of the chain from raw rows to a served model: data, teach, filter, train, eval, serve."""
