"""Copying: Snell et al. 2021."""
