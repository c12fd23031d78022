"""Call times of machines, measured or from a roofline model."""
