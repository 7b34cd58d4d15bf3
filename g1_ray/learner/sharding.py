"""FSDP2 over a policy: what is divided over the ranks, in which precision, and how long gathered weights stay."""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from g1_ray.config import RunConfig
from g1_ray.learner.policy import Policy, blocks_of
from g1_ray.models.weights import vision_tower


def shard(policy: Policy, mesh: DeviceMesh, device: torch.device, config: RunConfig, keep: bool) -> Policy:
    """Divides a policy over the ranks of a mesh. Collective. Its weights stay gathered through a step, to `keep` them.

    It comes to the device block by block, what is trained in float32: there is never more of the whole model than this
    rank's part. A frozen vision tower stays whole, outside of FSDP: it is run by itself, once a step for each picture.
    """
    dtype: torch.dtype = getattr(torch, config.model.dtype)
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    tower = vision_tower(policy.model)
    outside = tower if tower is not None and config.model.vision_is_frozen else nn.Module()
    outside.to(device)
    for block in blocks_of(policy.model):
        if block not in set(outside.modules()):
            fully_shard(_on(block, device), mesh=mesh, mp_policy=precision, reshard_after_forward=not keep)
    fully_shard(_on(policy, device), mesh=mesh, mp_policy=precision, ignored_params=set(outside.parameters()))
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
            # Shards are laid out anew at the first use: it is made now, before the optimizer holds on to them.
            module.unshard()
            module.reshard()
    return policy


def _on(module: nn.Module, device: torch.device) -> nn.Module:
    """What of a module has not been divided yet, as FSDP is to keep it: master weights are float32."""
    for parameter in module.parameters():
        if type(parameter) is nn.Parameter:  # and not a shard
            parameter.data = parameter.data.to(device, torch.float32 if parameter.requires_grad else parameter.dtype)
    return module


def stays_gathered(policy: Policy, config: RunConfig) -> bool:
    """Whether the weights of policy and reference stay gathered through a step, and not for a block at a time."""
    size = sum(p.numel() for p in policy.parameters()) * getattr(torch, config.model.dtype).itemsize
    return (2 if config.has_reference else 1) * size <= config.learner.keep_gathered_gb * 1e9


def let_go(policy: Policy) -> None:
    """Gives up gathered weights, as a backward pass does: they are copies, in the compute dtype.

    Without it they would stay what the model computes with, and what is read of it, after the shards have changed.
    """
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
