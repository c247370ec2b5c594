"""Limits from known-good runs: what the runs show, the table that is made of it, and judging by that table."""
