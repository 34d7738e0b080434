"""Whole experiments: each trains what it needs, keeps it, and ends in a table and figures."""
