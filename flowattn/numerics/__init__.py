"""Numerics: solving flows and descending losses, singly or many in parallel."""
