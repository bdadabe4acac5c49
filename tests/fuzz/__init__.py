"""Mutated inputs of every kind, and what must hold for each: the right result or one clear line, never anything else.

A file here is a target: its ``TARGETS`` maps names to functions ``(rng, folder)`` that make one input from the random numbers,
use it and raise where something does not hold. Input ``i`` of a target depends on the seed, the target's name and ``i`` only.

    python -m tests.fuzz --count 10000                    # every target
    python -m tests.fuzz "json lines" --first 1234 --count 1   # one input again
"""
