"""Runs: flow and descent of one problem, and what is reported of them."""
