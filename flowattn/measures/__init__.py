"""Measures: gaps, drifts, defects and sharpness of flows and runs."""
