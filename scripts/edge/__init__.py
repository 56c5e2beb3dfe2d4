"""Gradient descent at the edge of stability, against flows: its parts."""
