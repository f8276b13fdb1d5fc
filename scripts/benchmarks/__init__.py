"""What ``scripts/benchmark.py`` measures, one question a file."""
