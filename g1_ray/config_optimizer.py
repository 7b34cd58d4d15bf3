"""The optimizer of a config: that of cold starts, and that of runs, whose learning rate may fall."""

from pydantic import Field, model_validator

from g1_ray.config_file import Section


class OptimizerConfig(Section):
    """AdamW."""

    lr: float = Field(1e-6, gt=0, description="learning rate after the warm-up")
    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises linearly from 0")
    weight_decay: float = Field(0.01, ge=0, description="decoupled, times the learning rate")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the two moments")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")


class DecayingOptimizerConfig(OptimizerConfig):
    """AdamW, whose learning rate may fall."""

    decay_steps: int = Field(0, ge=0, description="step at which the learning rate has fallen, linearly since the "
                             "warm-up, to final_lr, where it stays; 0: it does not fall")  # fmt: skip
    final_lr: float = Field(0.1, ge=0, le=1, description="what is left of the learning rate then, as a share of it")

    @model_validator(mode="after")
    def _check(self) -> "DecayingOptimizerConfig":
        if 0 < self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"decay_steps = {self.decay_steps}: more than warmup_steps, which is {self.warmup_steps}; or 0"
            )
        if not self.decay_steps and self.final_lr != type(self).model_fields["final_lr"].default:
            raise ValueError(
                f"final_lr = {self.final_lr:g}: without decay_steps the learning rate does not fall; give that, too"
            )
        return self

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, from 1 on."""
        if step < self.warmup_steps:
            return self.lr * step / self.warmup_steps
        if not self.decay_steps:
            return self.lr
        along = min(1.0, (step - self.warmup_steps) / (self.decay_steps - self.warmup_steps))
        return self.lr * (1 - along * (1 - self.final_lr))
