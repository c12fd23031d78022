"""Hostile input, drawn at random, through the command line as a user would give it.

    make fuzz                         2,000 cases, a new seed
    make fuzz SEED=7 CASES=500        these 500 again
    python -m tests.fuzz --kind gguf --seed 7 --only 12

Every case runs in a worker process with limits of memory and time. A case fails if a
traceback is shown, if an exit code is none of those that are documented, if stderr has
something that a terminal would obey, if it does not end, or if it ends the process.
"""
