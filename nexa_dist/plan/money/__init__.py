"""Ledger, bill, budget and waste. Pure."""
