"""Numerics: flows solved, losses descended, one at a time or many side by side."""
