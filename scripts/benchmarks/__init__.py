"""What benchmark.py compares."""
