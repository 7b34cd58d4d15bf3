"""Reinforcement learning of vision-language models on the games in `envs`: a wing for each stage of a run.

A wing imports only what stands below it; `tests/test_wings.py` has the order.
"""
