"""What a target on other hosts costs, and what drafts gain there."""
