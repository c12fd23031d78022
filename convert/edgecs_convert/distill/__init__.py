"""Distillation of drafters from a target's answers: data, training, export, choice."""
