"""Positional and semantic attention: Cui, Behrens, Krzakala & Zdeborová 2024."""
