"""Attacks on training: malicious clients that poison their examples or their updates."""
