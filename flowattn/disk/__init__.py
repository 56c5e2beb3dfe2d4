"""Disk: what is written and read, so that files appear whole and damage is seen."""
