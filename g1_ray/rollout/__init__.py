"""The games as the pipeline plays them.

Tickets come in and become prompts; completions come in and become turns, judged (`judge`) and rewarded (`referee`).
May import the ground floor, models, config and runs.
"""
