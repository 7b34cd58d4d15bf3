"""What a run leaves behind, and how it is read again.

Metrics, fates, groups and checkpoints come in, a folder is what they become (`run_folder`); readers of any folder get
rows, games, curves and pictures out of it. May import the ground floor, models and config.
"""
