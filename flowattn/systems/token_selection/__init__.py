"""Token selection: Sakamoto & Sato 2025."""
