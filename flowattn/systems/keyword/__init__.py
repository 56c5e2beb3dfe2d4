"""Keyword: Snell et al. 2021."""
