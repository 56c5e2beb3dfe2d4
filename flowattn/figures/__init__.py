"""Figures: what the papers show, and what they could not, each from one command."""
