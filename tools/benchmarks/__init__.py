"""What ``tools/benchmark.py`` measures, a module for each component.

Each module has ``cases(args) -> list`` of :class:`~benchmarks.runner.Case`.
"""
