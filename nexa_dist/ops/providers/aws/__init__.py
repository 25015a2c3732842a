"""Nodes rented from EC2."""
