"""What is measured about a target on this machine, and kept between runs."""
