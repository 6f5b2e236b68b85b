"""Recorders for other people's training loops; each module imports its library, so import it by its name."""
