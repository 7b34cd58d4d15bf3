"""The machines: a config and nodes come in, a joined cluster, needs and a placement, or what helps, go out.

May import the ground floor, models, config, engines and the learner."""
