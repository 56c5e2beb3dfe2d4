"""Focus: Vashisht & Ramaswamy 2023."""
