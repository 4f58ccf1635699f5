"""What scripts/compare.py and scripts/teacher_robustness.py are made of."""
