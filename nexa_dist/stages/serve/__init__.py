"""The stage serve: proof that a model answers. `hold.py` keeps one served, as a run."""
