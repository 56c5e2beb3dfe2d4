"""The command line, by tyro."""
