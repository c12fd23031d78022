"""The adaptive schedule: acceptance probabilities, call costs and draft selection."""
