"""Benchmarks, a file for each theme."""
