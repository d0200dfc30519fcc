"""Campaigns of many runs, and reports on them."""
