"""Several answers at once: slots, jobs, and the calls that they share."""
