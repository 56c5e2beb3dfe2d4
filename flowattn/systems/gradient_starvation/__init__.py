"""Gradient starvation: Pezeshki, Kaba, Bengio, Courville, Precup & Lajoie 2021."""
