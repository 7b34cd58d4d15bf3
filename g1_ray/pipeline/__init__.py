"""A training run: the two graphs, the actors they join, the buffer in which they meet, the loop that drives them.

A config comes in; a run folder and a policy go out. May import every wing up to evaluation.
"""
