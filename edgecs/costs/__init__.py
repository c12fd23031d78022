"""How long a call takes, by width and depth: measured and corrected as it runs."""
