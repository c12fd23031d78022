"""What calls cost on a machine: measured there, or from a roofline."""
