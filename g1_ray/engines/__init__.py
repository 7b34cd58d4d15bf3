"""Who answers prompts.

Requests come in, completions with log-probabilities and policy versions go out; weights come in between two tokens.
`make` is the one place that knows the kinds. May import the ground floor, models and config.
"""
