"""Stages of the pipeline around a training: a room each, and what they have in common."""
