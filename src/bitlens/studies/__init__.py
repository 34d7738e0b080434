"""Whole experiments: each trains what it needs, keeps it, resumes, and ends in a table and figures."""
