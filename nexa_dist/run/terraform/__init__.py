"""Terraform (or OpenTofu): its command lines for one stack, the locks on its state, its program and settings."""
