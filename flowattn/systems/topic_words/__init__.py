"""Topic words: Lu, Mao & Nayak 2021."""
