"""KTIW: Snell et al. 2021."""
