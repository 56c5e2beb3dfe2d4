"""Lanes: many solves in one loop, each with its own steps."""
