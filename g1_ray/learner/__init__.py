"""What makes a new policy: groups become samples, packs, an optimizer step; weights and checkpoints go out.

May import the ground floor, models, config, runs and rollout."""
