"""How good a player is, and why.

Players and games come in, runs of moves are played, tables, clips and the lab's findings go out.
May import every wing up to here: models, config, runs, rollout, engines, learner, cluster.
"""
