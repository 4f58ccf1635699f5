"""What scripts/study/compare.py and scripts/study/teacher_robustness.py are made of."""
