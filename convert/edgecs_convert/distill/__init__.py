"""Making a drafter of a target's own answers: data, training, export, selection."""
