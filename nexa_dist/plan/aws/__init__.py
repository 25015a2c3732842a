"""Decisions about aws clusters: scope, offers, quotas, prices, policies. Pure."""
