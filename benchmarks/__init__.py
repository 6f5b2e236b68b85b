"""Benchmarks: lltoolkit beside the other tools, a plain loop and the machine's own limit; ``make bench``."""
