"""Lanes: many solves side by side in one loop, each at its own pace."""
