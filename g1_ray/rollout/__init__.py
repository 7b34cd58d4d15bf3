"""The games as they are played: tickets become prompts, completions become turns, judged (`judge`, `referee`).

May import the ground floor, models, config and runs."""
