"""Measures: what is asked of flows and of runs."""
