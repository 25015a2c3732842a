"""What an aws cluster is, may rent and may cost. Pure."""
