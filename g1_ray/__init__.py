"""Reinforcement learning of vision-language models on the games in `envs`."""
