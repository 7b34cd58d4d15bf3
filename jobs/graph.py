"""Print the two graphs of a run, call by call, and where its parts are placed. Nothing is started."""

from jobs.options import Parser, add_config_options


def options() -> Parser:
    """What the command takes."""
    parser = Parser("graph", __doc__)
    add_config_options(parser, "jobs/configs/quickstart.toml", "learner.num_ranks=2")
    return parser


def main(argv: list[str] | None = None) -> int:
    """`g1-ray graph`."""
    args = options().parse_intermixed_args(argv)

    from g1_ray.config import load_config

    config = load_config(args.config, args.overrides)

    from g1_ray.cluster.reserve import teams
    from g1_ray.pipeline.actors import unmade
    from g1_ray.pipeline.graph import describe, rollout_graph, train_graph

    actors, names = unmade(config)
    lanes, passes = config.asynchrony.lanes, config.rollout.passes
    print(f"rollout graph: {lanes} lanes, input = {config.asynchrony.groups_per_tick} groups; lane 0")
    for line in describe(rollout_graph(actors, 0, 0, min(passes, 2)), names):
        print("  " + line)
    if passes > 2:
        print(f"  (generate and score: {passes} times; two are shown)")
    each = f"{config.capacity} groups of {config.rollout.group_size}"
    print(f"  at most {each} under way: (max_staleness + 1) x groups_per_step\n")
    print(f"train graph: one tick a step, {config.rollout.groups_per_step} groups, input = policy version")
    for line in describe(train_graph(actors), names):
        print("  " + line)
    print("\nplacement")
    print("  ReplayBuffer     the driver's node")
    for role, team in teams(config).items():
        print(f"  {role:16} {team}")
    return 0


if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("graph", main))
