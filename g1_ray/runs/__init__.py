"""What a run leaves behind: groups, metrics, checkpoints come in (`run_folder`), rows and curves go out (`reading`).

May import the ground floor, models and config."""
