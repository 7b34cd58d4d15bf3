from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("torchvision")

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil  # noqa: E402
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor  # noqa: E402

from envs.core import Game  # noqa: E402
from envs.task import Task  # noqa: E402
from g1_ray.models import pixels  # noqa: E402
from g1_ray.models.pixels import PixelValues  # noqa: E402

PROCESSORS = [Qwen2VLImageProcessor, Qwen2VLImageProcessorPil]
QWEN3 = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "min_pixels": 65536, "max_pixels": 16777216}

LOOKS: dict[str, tuple[str, dict[str, Any], bool]] = {  # game, perception, whether tiles are cached
    "numbers": ("2048", {"tiles": "numbers"}, True),
    "shapes": ("shisen", {"tiles": "shapes"}, True),
    "photos": ("shisen", {"tiles": "photos"}, True),
    "noise": ("2048", {"noise": 0.3, "rotation": 10.0, "jitter": 0.4, "background": "marble"}, True),
    "small": ("shisen", {"tile_px": 56}, True),
    "offset": ("2048", {"offset": 28}, False),
    "broken": ("2048", {"patch": 28, "tile_px": 42}, False),
}


def expected(processor: Any, task: Task, game: Game) -> tuple[np.ndarray, np.ndarray]:
    made = processor(images=task.draw(game), return_tensors="np")
    return made["pixel_values"], made["image_grid_thw"]


def check(values: PixelValues, task: Task, steps: int = 8) -> None:
    game = task.new_game()
    for seed in range(2):
        game.reset(seed)
        for _ in range(steps):
            want, grid = expected(values.processor, task, game)
            got, grid_thw = values(game.perception(), game.looks)
            assert got.dtype == want.dtype == np.float32
            assert got.shape == want.shape and [grid_thw] == [tuple(row) for row in grid.tolist()]
            assert got.tobytes() == want.tobytes()
            if game.over:
                break
            game.step(game.oracle())


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("processor_type", PROCESSORS)
def test_equals_the_processor_on_the_frame(processor_type: Any, look: str) -> None:
    game, perception, cached = LOOKS[look]
    task = Task.make(game, perception=perception)
    values = PixelValues(processor_type(), task.renderer)
    assert values.cached == cached
    check(values, task)


@pytest.mark.parametrize("processor_type", PROCESSORS)
def test_patches_of_sixteen(processor_type: Any) -> None:
    task = Task.make("2048", perception={"patch": 32})
    values = PixelValues(processor_type(**QWEN3), task.renderer)
    assert values.cached
    check(values, task)


def test_cache_over_its_limit_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_CACHE_BYTES", 1)
    task = Task.make("shisen", perception={"tile_px": 28})
    check(PixelValues(Qwen2VLImageProcessorPil(), task.renderer), task)


def test_new_atlas_starts_a_new_cache() -> None:
    task = Task.make("shisen", perception={"tile_px": 28, "tiles": "glyphs"})
    values = PixelValues(Qwen2VLImageProcessorPil(), task.renderer)
    check(values, task, 1)
    task.renderer._start_atlas()
    other = task.new_game()
    other.reset(99)
    task.draw(other)  # other tiles take the old slots
    check(values, task, 1)


@pytest.mark.parametrize("bounds", [{"max_pixels": 400_000}, {"min_pixels": 500_000}])
@pytest.mark.parametrize("processor_type", PROCESSORS)
def test_frames_out_of_bounds(processor_type: Any, bounds: dict[str, int]) -> None:
    task = Task.make("2048")
    height, width, _ = task.renderer.shape
    with pytest.raises(ValueError, match=f"{width}x{height}.*{next(iter(bounds.values()))}.*tile_px"):
        PixelValues(processor_type(**bounds), task.renderer)


def test_frames_of_other_patches() -> None:
    with pytest.raises(ValueError, match="patch = 32"):
        PixelValues(Qwen2VLImageProcessorPil(patch_size=16), Task.make("2048", perception={"tile_px": 84}).renderer)
