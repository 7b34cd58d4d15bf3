"""A batch that went through parcels is the one that the groups themselves make, to the last bit."""

import logging
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest
import toys

from g1_ray.learner.samples import batch_of
from g1_ray.pipeline.parcels import opened, parcel_of, sealed_batch
from g1_ray.runs.trajectories import SCHEMA, packed_rows, turn_rows
from g1_ray.types import Rollout


@pytest.mark.parametrize("skip", [True, False])
def test_a_batch_that_was_packed_and_opened_is_the_same(skip):
    config = toys.config(algorithm={"skip_flat_groups": skip})
    groups = [toys.group(1), toys.group(2, rewards=(1.0,) * 4), toys.chain_group(3), toys.group(4, version=2)]
    one = batch_of(groups, 3, config, 7.0, {"2048": 2})
    other = opened(sealed_batch([parcel_of(group, config) for group in groups], 3, 7.0, {"2048": 2}))
    assert one.origin == other.origin and len(one.samples) == len(other.samples) > 4
    for mine, its in zip(one.samples, other.samples, strict=True):
        for name, value in vars(mine).items():
            assert (
                np.array_equal(value, getattr(its, name)) if isinstance(value, np.ndarray) else value == vars(its)[name]
            )


def test_what_the_buffer_decides_by_is_what_the_group_says():
    config, good = toys.config(), toys.group(1, version=3)
    parcel = parcel_of(good, config)
    assert (parcel.ticket, parcel.min_version, parcel.fault, parcel.flat) == (good.ticket, 3, "", False)
    assert parcel_of(toys.group(2, rewards=(1.0,) * 4), config).flat
    bad = parcel_of(replace(good, rollouts=(Rollout(), *good.rollouts[1:])), config)
    assert bad.fault == "rollout 0: no turns" and not bad.samples and bad.rows and bad.tally is bad.lesson is None


def test_rows_are_those_of_the_group(caplog):
    group = toys.chain_group(1)
    rows = pa.ipc.read_record_batch(pa.py_buffer(packed_rows(group)), SCHEMA).to_pylist()
    for row, turn in zip(rows, turn_rows(group), strict=True):
        same = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in turn.items()}
        assert {name: row[name] for name in same} == {name: same[name] for name in same}
    odd = replace(group.rollouts[0].turns[0], action="left")  # as a game of somebody else's might give
    with caplog.at_level(logging.ERROR):
        parcel = parcel_of(replace(group, rollouts=(Rollout((odd,)), *group.rollouts[1:])), toys.config())
    assert parcel.rows == b"" and parcel.samples and "is not among the trajectories" in caplog.text
    assert asdict(parcel.ticket) == asdict(group.ticket)
