"""Architectures whose conservation laws are known, to compare with those found."""
