"""Runs: flow and descent of one problem, and the report on them."""
