"""Linear ICL: Zhang, Singh, Latham & Saxe 2025."""
