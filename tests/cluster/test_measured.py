"""Estimates of memory beside the peak of a process that does the work, on the CPU: pytest -m slow -s FILE."""

import multiprocessing
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import toys  # noqa: E402

from g1_ray.cluster.memory import learner_need, shape_of  # noqa: E402
from g1_ray.config import EngineConfig  # noqa: E402
from g1_ray.engines.make import GB  # noqa: E402
from g1_ray.learner.learner import Learner  # noqa: E402
from g1_ray.learner.samples import batch_of  # noqa: E402
from g1_ray.models.tiny import make_tiny  # noqa: E402


def resident(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def two_steps(config, results):
    """Puts what this process held at most, after two steps of a pack that is nearly full, and what is estimated."""
    torch.set_num_threads(1)
    need = learner_need(config, shape_of(config.model.path))
    batch = batch_of([toys.group(number) for number in range(31)], 0, config)
    learner = Learner(config)
    learner.setup(toys.free_address())
    for _ in range(2):
        report = learner.step(batch)
        assert not report.skipped and report.metrics["packs"] == 1
        assert 0.95 * config.learner.tokens_per_pack < report.metrics["packed_tokens"]
    learner.close()
    results.put((resident("VmHWM"), need.total))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("lora, kl, keep", [(0, 0.0, 16), (0, 0.02, 16), (16, 0.0, 16), (0, 0.0, 0), (16, 0.0, 0)])
@pytest.mark.parametrize("width, depth", [(256, 4), (512, 5), (768, 7)])
def test_the_learner_takes_what_is_estimated(tmp_path, width, depth, lora, kl, keep):
    heads = {"num_attention_heads": width // 32, "num_key_value_heads": width // 64}
    text = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth, **heads}
    make_tiny(tmp_path, [toys.task()], 0, text=text)
    answers = {"max_tokens": 12, "group_size": 4}
    config = toys.config(
        path=str(tmp_path), lora=lora, tokens_per_pack=2048, rollout=answers, algorithm={"kl_coef": kl}
    )
    prompt = len(toys.group(0).turns[0].prompt.token_ids)
    learner = config.learner.model_copy(update={"keep_gathered_gb": keep})
    config = config.model_copy(update={"engine": EngineConfig(max_model_len=prompt + 12), "learner": learner})
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    process = spawn.Process(target=two_steps, args=(config, results))
    process.start()
    process.join()
    assert process.exitcode == 0
    measured, estimated = results.get()
    params = shape_of(str(tmp_path)).params / 1e6
    about = f"{params:.1f} M, LoRA {lora}, KL {kl}, keep_gathered_gb {keep}"
    print(f"\n{about}: measured {measured / GB:.2f} GB, estimated {estimated / GB:.2f} GB ({estimated / measured:.2f})")
    assert 1 / 1.15 < estimated / measured < 1.15
