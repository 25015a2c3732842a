"""From the evidence of an attempt to the rank that failed first and why. Pure."""
