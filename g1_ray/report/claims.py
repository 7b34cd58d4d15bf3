"""The paper's claims put to the test: which runs an experiment consists of, and the page that says what they came to.

A claim holds for a game where the trained model is above the one before it, with every seed: the interval of what was
gained is above 0.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from g1_ray.config import NAME
from g1_ray.config_file import Section, load_section
from g1_ray.evaluation.results import Mean, difference_of
from g1_ray.files import read_lines, write_text
from g1_ray.report.boards import boards_table
from g1_ray.runs.curves import CURVES, PATTERNS, curve_of, draw_curves, games_with_curves, smooth
from g1_ray.tables import markdown

EDGE = 0.1
"""Share of a curve that its start is, and its end."""
_CURVES = {**CURVES, **{f"pattern_{name}": f"thinking: {title}" for name, title in PATTERNS.items()}}


class Experiment(Section):
    """Runs that one claim is tested by: each of the configs, in each of the variants, with as many seeds."""

    name: str = Field(pattern=NAME, description="its runs are called by it")
    claim: str = Field(description="what is tested, a sentence")
    configs: tuple[str, ...] = Field(min_length=1, description="of jobs/configs, without .toml")
    before: str = Field(description="the model that runs start from, by its name among the baselines")
    set: tuple[str, ...] = Field((), description="options of every run, e.g. 'minutes=20'")
    variants: dict[str, tuple[str, ...]] = Field({"": ()}, description="name -> options of its runs")
    boards: bool = Field(False, description="on the paper's own boards")
    beside: str = Field("", description="the experiment whose trained models its own ones are told beside")
    tried: tuple[str, ...] = Field((), description="what did not work, a line each, with its figure")
    seeds: int = Field(3, ge=1)
    reach: float = Field(0.0, ge=0, le=1, description="an R_acc: told is how many answers it took to get there; 0: not")

    def trials(self) -> list["Trial"]:
        """Its runs, all variants of a config with a seed together."""
        return [
            Trial(self, config, variant, seed)
            for config in self.configs
            for seed in range(self.seeds)
            for variant in self.variants
        ]


class Claims(Section):
    """What `make paper` runs."""

    experiments: tuple[Experiment, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "Claims":
        known: set[str] = set()
        names = [experiment.name for experiment in self.experiments]
        for experiment in self.experiments:
            if experiment.beside and experiment.beside not in names:
                raise ValueError(f"{experiment.name}: beside = {experiment.beside!r}; there are {', '.join(names)}")
        for name in (trial.name for experiment in self.experiments for trial in experiment.trials()):
            if name in known:
                raise ValueError(
                    f"experiments: two runs are called {name!r}; give a variant or an experiment another name"
                )
            known.add(name)
        return self


@dataclass(frozen=True)
class Trial:
    """A run of an experiment."""

    experiment: Experiment
    config: str
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """E.g. "g0-shisen-seed1"."""
        parts = (self.experiment.name, self.config, self.variant.replace(" ", "-"), f"seed{self.seed}")
        return "-".join(filter(None, parts))

    @property
    def options(self) -> list[str]:
        """All of its options but where it is to be written."""
        return [*self.experiment.set, *self.experiment.variants[self.variant], f"seed={self.seed}", f"name={self.name}"]


@dataclass(frozen=True)
class Found:
    """What a run came to."""

    trial: Trial
    game: str
    metrics: list[dict[str, Any]]
    before: Mean
    """Moves that score at T=1, in %."""
    after: Mean
    group_size: int
    flat_size: int
    """Answers of a flat group: fewer where groups are screened."""

    @property
    def gain(self) -> Mean:
        """What training brought, in % of the moves."""
        return difference_of(self.after, self.before)

    def ends(self, curve: str) -> tuple[float, float]:
        """The mean of the first and of the last tenth of a curve's values; NaN where it has none."""
        values = curve_of(self.metrics, f"{self.game}/{curve}")
        known = values[~np.isnan(values)]
        edge = max(1, round(EDGE * len(known)))
        return (float(known[:edge].mean()), float(known[-edge:].mean())) if len(known) else (float("nan"),) * 2

    def accuracies(self, name: str) -> tuple[float, float]:
        """P_acc or R_acc at the start and at the end: the lab's, where it was looked into, else that of training.

        They are one but where descriptions are given in training.
        """
        lab = self.ends(f"lab_{name}")
        return self.ends(name) if np.isnan(lab).any() else lab

    def answers_to(self, r_acc: float) -> int | None:
        """Answers that had come, of flat groups too, when R_acc, smoothed, was there; None where it never was."""
        reached = smooth(curve_of(self.metrics, f"{self.game}/r_acc"), max(1, len(self.metrics) // 20)) >= r_acc
        groups, flat = (curve_of(self.metrics, f"{self.game}/{name}") for name in ("groups", "flat_groups"))
        answers = np.nancumsum((groups - flat) * self.group_size + flat * self.flat_size)
        return int(answers[reached.argmax()]) if reached.any() else None

    def along(self, curve: str) -> float:
        """How a curve goes with that of the reward (Pearson's correlation over the steps)."""
        one, other = (curve_of(self.metrics, f"{self.game}/{name}") for name in (curve, "reward_game"))
        known = ~np.isnan(one) & ~np.isnan(other)
        flat = not known.any() or one[known].std() == 0 or other[known].std() == 0
        return float("nan") if flat else float(np.corrcoef(one[known], other[known])[0, 1])

    def risen(self) -> str:
        """The pattern of thinking whose share rose by most."""
        rises = {name: last - first for name in PATTERNS for first, last in [self.ends(f"pattern_{name}")]}
        return max((name for name in rises if rises[name] == rises[name]), key=rises.__getitem__)


def load_claims(path: Path, options: Sequence[str] = ()) -> Claims:
    """The experiments of a TOML file, with more options for every run. Raises `ValueError` of at most three lines."""
    claims = load_section(Claims, path)
    its = [each.model_copy(update={"set": (*each.set, *options)}) for each in claims.experiments]
    return claims.model_copy(update={"experiments": tuple(its)})


def found(trial: Trial, folder: Path) -> list[Found]:
    """What a run in a folder came to, game by game; nothing where it is not finished."""
    results = folder / "eval" / "results.json"
    if not results.is_file() or not (folder / "report.json").is_file():
        return []
    metrics, config = read_lines(folder / "metrics.jsonl"), json.loads((folder / "config.json").read_text())
    lines = [line for line in json.loads(results.read_text()) if "scoring" in line]
    scoring = {(line["game"], line["player"]): Mean(*line["scoring"]) for line in lines}
    before, after = (f"{name}, T=1" for name in (trial.experiment.before, config["eval"]["label"]))
    size, screen = config["rollout"]["group_size"], config["rollout"].get("screen_size", 0)
    return [
        Found(trial, game, metrics, scoring[game, before], scoring[game, after], size, screen or size)
        for game in games_with_curves(metrics)
    ]


WORTH = (
    "The published rows are general models of billions of parameters that are told the rules in words. G1 here has "
    "less than a million, began from nothing, was taught by a program that errs half the time, and knows these boards "
    "only. The comparison shows that the pipeline takes a model past its teacher, not that this is the better model."
)
"""Of a comparison with what was published."""


def write_page(path: Path, claims: Claims, runs: Path) -> None:
    """Writes the page, and beside it a picture for each game of each experiment, and of each run its curves as a table
    and the table of all players."""
    about = __doc__.partition("\n\n")[2].strip()
    parts = ["# The paper's claims, at laptop size\n", f"    make paper\n\n{about}\n"]
    all_found = {
        experiment.name: [one for trial in experiment.trials() for one in found(trial, runs / trial.name)]
        for experiment in claims.experiments
    }
    for experiment in claims.experiments:
        its, others = all_found[experiment.name], all_found.get(experiment.beside, [])
        parts.append(f"## {experiment.claim}\n")
        parts += _section(experiment, its, others, path, runs) if its else ["Not run yet.\n"]
        if experiment.tried:
            parts += ["Also tried:\n", *(f"- {line}" for line in experiment.tried), ""]
        for name in {one.trial.name for one in its}:
            for file in ("eval/table.md", "curves.csv"):
                kept = path.parent / path.stem / f"{name}{Path(file).suffix}"
                write_text(kept, (runs / name / file).read_text())
    write_text(path, "\n".join(parts))


def _section(
    experiment: Experiment, its: Sequence[Found], others: Sequence[Found], path: Path, runs: Path
) -> list[str]:
    options = [f"Options: `{' '.join(experiment.set)}`\n"] if experiment.set else []
    parts = [*options, *([f"{WORTH}\n"] if experiment.boards else []), markdown(_rows(its))]
    for config in experiment.configs:
        for variant in experiment.variants:
            mine = [one for one in its if (one.trial.config, one.trial.variant) == (config, variant)]
            for game in dict.fromkeys(one.game for one in mine):
                parts.append(_verdict([one for one in mine if one.game == game]))
        of_config = [one for one in its if one.trial.config == config]
        parts += _variants_beside(of_config)
        parts += _beside([one for one in others if one.trial.config == config], of_config)
        if of_config:
            picture = path.parent / path.stem / f"{experiment.name}-{config}.png"
            picture.parent.mkdir(exist_ok=True)
            _draw(picture, of_config)
            parts.append(f"\n![{experiment.name}, {config}]({path.stem}/{picture.name})\n")
        if experiment.boards:
            parts += [
                f"{one.trial.name}:\n\n{markdown(boards_table(runs / one.trial.name, one.game))}" for one in of_config
            ]
    return parts


def _beside(others: Sequence[Found], its: Sequence[Found]) -> list[str]:
    """What its models came to after training beside those of another experiment, each with each."""
    lines = []
    for game in dict.fromkeys(one.game for one in its):
        gains = {
            f"{one.trial.seed} and {other.trial.seed}": difference_of(one.after, other.after)
            for one in its
            for other in others
            if one.game == other.game == game
        }
        if gains:
            above, below = sum(gain.low > 0 for gain in gains.values()), sum(gain.high < 0 for gain in gains.values())
            pairs = "; ".join(f"{seeds}: {gain}" for seeds, gain in gains.items())
            lines.append(
                f"- {game} beside {others[0].trial.experiment.name}: above it in {above} of {len(gains)} pairs of "
                f"seeds, below it in {below} ({pairs})."
            )
    return lines


def _variants_beside(its: Sequence[Found]) -> list[str]:
    """Where answers to an R_acc are counted: each variant beside the first one, seed by seed."""
    lines, reach = [], its[0].trial.experiment.reach if its else 0.0
    first, *others = dict.fromkeys(one.trial.variant for one in its) if reach else [""]
    for variant in others:
        of = {name: {one.trial.seed: one for one in its if one.trial.variant == name} for name in (first, variant)}
        pairs = [(of[first][seed], of[variant][seed]) for seed in of[first].keys() & of[variant].keys()]
        answers = [(one.answers_to(reach), other.answers_to(reach)) for one, other in pairs]
        shares = [other / one for one, other in answers if one and other]
        share = f"{np.exp(np.mean(np.log(shares))):.2f}" if shares else "an unknown share"
        more = [other.after.mean - one.after.mean for one, other in pairs]
        lines.append(
            f"- {variant} beside {first}: {share} of the answers to an R_acc of {reach:g}, each on the states that it "
            f"draws; in the table after training {np.mean(more):+.1f} points, higher in {sum(m > 0 for m in more)} of "
            f"{len(more)} seeds."
        )
    return lines


def _draw(picture: Path, its: Sequence[Found]) -> None:
    several = len({one.game for one in its}) > 1
    lines = {}
    for one in its:
        label = " ".join(filter(None, (one.game * several, one.trial.variant, f"seed {one.trial.seed}")))
        lines[label] = one.metrics, {curve: f"{one.game}/{curve}" for curve in _CURVES}
    draw_curves(picture, _CURVES, lines)


def _rows(its: Sequence[Found]) -> list[list[str]]:
    head = "run|game|before, T=1, % of moves that score|after|gain|steps|P_acc, start to end|R_acc|pattern that rose"
    reach = its[0].trial.experiment.reach
    rows = [[*head.split("|"), *([f"answers to an R_acc of {reach:g}"] if reach else [])]]
    for one in its:
        p_acc, r_acc = (" to ".join(f"{end:.2f}" for end in one.accuracies(name)) for name in ("p_acc", "r_acc"))
        name = one.risen()
        shares = " to ".join(f"{end:.2f}" for end in one.ends(f"pattern_{name}"))
        pattern = f"{PATTERNS[name]}: {shares}, r = {one.along(f'pattern_{name}'):.2f} with the reward"
        steps = str(one.metrics[-1]["step"])
        row = [one.trial.name, one.game, str(one.before), str(one.after), str(one.gain), steps, p_acc, r_acc, pattern]
        rows.append([*row, *([f"{one.answers_to(reach) or 'not reached'}"] if reach else [])])
    return rows


def _verdict(its: Sequence[Found]) -> str:
    above, below = (sum(sign > 0 for sign in signs) for signs in
                    ([one.gain.low for one in its], [-one.gain.high for one in its]))  # fmt: skip
    what = " ".join(filter(None, (its[0].game, its[0].trial.variant)))
    held = "holds" if above == len(its) else "does not hold" if not above else "holds in part"
    held += " so far" if len(its) < its[0].trial.experiment.seeds else ""
    first, last = np.mean([one.accuracies("p_acc") for one in its], 0)
    return (
        f"- {what}: {held}: above the model before it in {above} of {len(its)} seeds, below it in {below}; "
        f"P_acc from {first:.2f} to {last:.2f}."
    )
