"""Figures: those of the papers, and new ones, each from one command."""
