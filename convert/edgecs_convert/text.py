"""A small text of several kinds for comparing models."""

TEXT = """\
A lighthouse keeper has two duties: to keep the lamp burning and to write down what
passes. In the winter of 1887 the keeper of a small rock off the coast wrote only one
line a day, and every line began with the weather. "Fog. Bell rung every minute from
four to nine." "Gale from the north-west; one pane broken, mended with tin." He never
wrote about himself, so we know that he was cold only because the price of coal appears
in the margin, first in pencil and later in ink.

To mend a pane you need a sheet of tin, a pair of shears and eight nails. Measure the
frame twice, cut the sheet half an inch too large, and fold the edges inwards so that
they do not cut the rope. If the wind is above force seven, wait.

def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)

The function fails for an empty list, because it divides by zero. What should it return
instead? There are three answers: nothing, zero, or an error. Most libraries choose the
error, since a wrong number is worse than no number at all.
"""
