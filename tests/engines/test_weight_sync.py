import numpy as np
import pytest
import safetensors.torch
import torch

from g1_ray.engines.weight_sync import (
    CANARY_TOLERANCE,
    BlindError,
    Canary,
    WeightSyncError,
    check_names,
    check_sight,
    check_version,
    pack_weights,
    packed_names,
    unpack_weights,
    weights_file,
)

PARAMETERS = [("b", torch.arange(6.0).reshape(2, 3).T), ("a.weight", torch.tensor([1.0, 1 / 3]))]


def test_weights_arrive_as_they_were_sent() -> None:
    packed = pack_weights(PARAMETERS, torch.float32)
    assert packed.dtype == np.uint8 and sorted(packed_names(packed)) == ["a.weight", "b"]
    arrived = unpack_weights(packed)
    assert all(torch.equal(arrived[name], tensor) for name, tensor in PARAMETERS)
    as_a_file = safetensors.torch.load(packed.tobytes())  # which is how vLLM reads them
    assert all(torch.equal(as_a_file[name], tensor) for name, tensor in PARAMETERS)
    half = unpack_weights(pack_weights(PARAMETERS, torch.bfloat16))
    assert half["a.weight"].dtype == torch.bfloat16 and half["a.weight"][1] == torch.tensor(1 / 3).bfloat16()


def test_the_file_of_the_weights_is_there_as_long_as_it_is_needed() -> None:
    packed = pack_weights(PARAMETERS, torch.float32)
    packed.flags.writeable = False  # as Ray gives it
    with weights_file(packed) as path:
        assert path.read_bytes() == packed.tobytes()
    assert not path.exists()


def test_a_version_that_is_not_newer_is_refused() -> None:
    check_version(3, 5)
    for version in (2, 3):
        with pytest.raises(ValueError, match=f"policy version {version}: the engine holds version 3"):
            check_version(3, version)


def test_weights_of_another_model_are_refused() -> None:
    check_names(["a", "lm_head.weight"], ["a"])
    with pytest.raises(ValueError, match="lack a and 1 more"):
        check_names(["c"], ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"hold a.lora_A, which the model lacks: .* adapters merged"):
        check_names(["a", "a.lora_A"], ["a"])


def learner(step: int, change: float) -> list[np.ndarray]:
    """Log-probabilities on two sequences after some steps, each of which moves them by about `change`."""
    rng = np.random.default_rng(0)
    start, drift = rng.normal(-3, 1, 30), rng.normal(0, change, (step + 1, 30)).cumsum(0)[step]
    return [(start + drift).astype(np.float32)[:10], (start + drift).astype(np.float32)[10:]]


@pytest.mark.parametrize("noise, change", [(1e-6, 1e-5), (2e-3, 0.02)])
def test_the_canary_sings_while_engine_and_learner_agree(noise: float, change: float) -> None:
    canary, rng = Canary(tolerance=0.05), np.random.default_rng(1)
    for step in range(20):
        engine = [each + rng.normal(0, noise, each.shape).astype(np.float32) for each in learner(step, change)]
        assert canary.check(step, engine, learner(step, change)) < 2 * noise


def test_the_canary_sees_weights_that_did_not_arrive() -> None:
    far = Canary(tolerance=0.05)
    far.check(0, learner(0, 0.2), learner(0, 0.2))
    with pytest.raises(WeightSyncError, match=r"version 1: .* differ by 0.\d+ nats a token \(tolerance 0.05\)"):
        far.check(1, learner(0, 0.2), learner(1, 0.2))
    near = Canary(tolerance=0.05)  # a step so small that the difference is within the tolerance
    near.check(0, learner(0, 1e-3), learner(0, 1e-3))
    with pytest.raises(WeightSyncError, match="version 1: .* weights were not replaced"):
        near.check(1, learner(0, 1e-3), learner(1, 1e-3))


def test_the_canary_sees_it_where_rounding_is_larger_than_a_step() -> None:
    """As in bfloat16: what the two always differ by is ten times what a step changes."""
    rounding = [np.random.default_rng(len(each)).normal(0, 0.02, each.shape) for each in learner(0, 0)]

    def engine(step: int) -> list[np.ndarray]:
        return [(a + b).astype(np.float32) for a, b in zip(learner(step, 2e-3), rounding, strict=True)]

    canary = Canary(CANARY_TOLERANCE["bfloat16"])
    for step in range(3):
        assert 0.01 < canary.check(step, engine(step), learner(step, 2e-3)) < 0.03
    with pytest.raises(WeightSyncError, match=r"version 3: .* moved by 0.0\d+ nats a token, the engine's by 0: its w"):
        canary.check(3, engine(2), learner(3, 2e-3))


def test_the_canary_sees_values_that_are_not_numbers() -> None:
    broken = [np.full_like(each, np.nan) for each in learner(0, 0)]
    with pytest.raises(WeightSyncError, match="differ by nan"):
        Canary(tolerance=0.05).check(0, broken, learner(0, 0))


def seen(board: float, again: float = 0.0, games: int = 2) -> list[np.ndarray]:
    """The canaries of games on which a blank picture moves log-probabilities by `board`."""
    base = np.linspace(-3, 0, 20, dtype=np.float32)
    return [base, base + np.float32(again), base + np.float32(board), base[:9]] * games


@pytest.mark.parametrize("board, again", [(0.05, 0.0), (3e-3, 1e-3), (2e-4, 1e-7)])
def test_who_sees_passes(board: float, again: float) -> None:
    check_sight(3, ["2048", "swap"], {"the learner": seen(board, again), "engine 0": seen(board)})


@pytest.mark.parametrize("board, again", [(0.0, 0.0), (1e-6, 0.0), (4e-3, 3e-3)])
def test_who_is_blind_is_named(board: float, again: float) -> None:
    """Also where rounding alone moves log-probabilities as far as the picture does, and on one game only."""
    sees = seen(0.5)
    for scored, names in (
        ({"the learner": seen(board, again), "engine 0": seen(board, again)}, "the learner and engine 0"),
        ({"the learner": sees, "engine 0": sees, "engine 1": seen(board, again)}, "engine 1"),
        ({"the learner": sees[:4] + seen(board, again)[4:], "engine 0": sees}, "the learner"),
    ):
        with pytest.raises(BlindError, match=f"version 3: {names} blind on (2048|swap)") as error:
            check_sight(3, ["2048", "swap"], scored)
        assert len(str(error.value).splitlines()) <= 3
