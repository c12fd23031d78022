"""What passes between the parts of a round, and files read and written with care."""
