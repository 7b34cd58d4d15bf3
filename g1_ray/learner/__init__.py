"""What makes a new policy of groups.

Groups come in and become samples (`samples`), packs (`packs`) and an optimizer step (`learner`); weights and
checkpoints go out. May import the ground floor, models, config, runs and rollout.
"""
