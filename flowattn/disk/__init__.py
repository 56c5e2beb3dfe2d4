"""Disk: reading and writing, so that files appear in one piece and damage is found."""
