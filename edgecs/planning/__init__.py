"""The adaptive schedule: how likely drafted tokens are, what calls cost, what pays."""
