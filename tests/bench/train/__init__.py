"""Trainings side by side: bench.py is what scripts/bench_train runs."""
