"""Who answers: requests and weights come in, completions with policy versions go out. `make` knows the kinds.

May import the ground floor, models and config."""
