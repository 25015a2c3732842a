"""Budget, lease, usage and cost of a cluster."""
