"""Commands that are killed at random moments, and what they leave behind.

    make kills                        200 kills, a new seed
    make kills SEED=7 KILLS=100       these 100 again
    python -m tests.kills --kind pull --seed 7 --kills 20

An episode is one piece of work in a folder of its own: a command is killed with SIGKILL
once or several times and then left alone, until it has ended what it was to do. A kill
comes after a share of the time that an undisturbed run took, right before a change to a
file, or a moment after one. After each kill every file is the old one or the new one,
nothing that was finished is gone, and no lock is held; at the end the work is that of a
run that was never killed, and nothing else is left.
"""
