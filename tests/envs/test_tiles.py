"""Tile sets, perturbations and drawing: kinds are told apart, held-out differs, files are read, pictures are exact."""

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from envs import Perception, Task
from envs.drawing import Canvas, Renderer
from envs.perception import TILE_SETS, Look
from envs.task import PERCEPTION_LEVELS
from envs.tiles.drawn import PALETTE

PERTURBATIONS = {"rotation": 20.0, "jitter": 0.5, "blur": 0.5, "resolution": 0.3, "noise": 0.5, "background": "marble"}
PERTURBATIONS["offset"] = 20
DRAWN = ("colors", "shapes", "numbers", "glyphs", "photos")


def pictures(tiles, split, px=56):
    tile_set = Perception(tiles=tiles, split=split).tile_set(96 if tiles == "shapes" else 1)
    look = Look(Perception(tiles=tiles, split=split), tile_set, px)
    return tile_set.names, [look.tile(kind, 0) for kind in range(tile_set.num_kinds + 1)]


def difference(a, b):
    """Mean absolute difference of two pictures, 0 to 255."""
    return np.abs(a.astype(int) - b).mean()


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("tiles", DRAWN)
def test_kinds_have_names_of_their_own_and_are_told_apart(tiles, split):
    names, drawn = pictures(tiles, split)
    assert len(set(map(str.lower, names))) == len(names) and names[0] == "-"
    assert not any("|" in name or "<" in name for name in names)
    pairs = [(difference(a, b), i, j) for i, a in enumerate(drawn) for j, b in enumerate(drawn[:i])]
    assert min(pairs)[0] > 1.5, f"{names[min(pairs)[1]]} looks like {names[min(pairs)[2]]}"


@pytest.mark.parametrize("tiles", DRAWN)
def test_held_out_tiles_keep_their_names_and_look_different(tiles):
    names, train = pictures(tiles, "train")
    other_names, heldout = pictures(tiles, "heldout")
    assert names == other_names
    assert all(difference(a, b) > 1 for a, b in zip(train[1:], heldout[1:], strict=True))


@pytest.mark.parametrize("tiles", DRAWN)
@pytest.mark.parametrize("name, value", [*PERTURBATIONS.items()])
def test_every_perturbation_changes_every_tile_set_and_is_deterministic(tiles, name, value):
    plain = Perception(tiles=tiles)
    perturbed = Perception(**{**plain.as_dict(), name: value})
    board = np.array([[1, 2, 3], [4, 0, 5], [6, 7, 8]], np.uint8)
    looks = np.arange(9, dtype=np.uint16).reshape(3, 3) * 7 + 5
    a, b = Renderer(plain, 3, 3, 8).draw(board, looks), Renderer(perturbed, 3, 3, 8).draw(board, looks)
    assert a.shape != b.shape or (a != b).any()
    assert (b == Renderer(perturbed, 3, 3, 8).draw(board, looks)).all()


def test_all_perturbations_compose():
    perception = Perception(tiles="glyphs", **PERTURBATIONS)
    frame = Task.make("2048", perception=perception.as_dict()).renderer.draw(
        np.ones((4, 4), np.uint8), np.arange(16, dtype=np.uint16).reshape(4, 4)
    )
    assert frame.std() > 10


def write_cifar(folder, records):
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        data = rng.integers(0, 256, (records, 3073), np.uint8)
        data[:, 0] = np.arange(records) % 10
        data[:, 1:] = data[:, :1] * 20 + (5 if name == "test_batch.bin" else 0)  # the class is the gray level
        data[:, 1:1025] = rng.integers(0, 256)  # and the red plane the file
        (folder / name).write_bytes(data.tobytes())


def test_cifar10_is_read_from_its_binary_files_and_train_and_test_stay_apart(tmp_path):
    write_cifar(tmp_path, 40)
    train, test = (
        Perception(tiles="cifar10", path=str(tmp_path), split=split).tile_set(10) for split in ("train", "heldout")
    )
    assert train.names[1:3] == ("airplane", "automobile") and train.num_kinds == 10
    assert [train.num_pictures(k) for k in (1, 10)] == [20, 20] and test.num_pictures(1) == 4
    for kind in range(1, 11):
        for number in range(4):
            pixel = np.asarray(train.draw(kind, number, 56))[30, 30]
            assert tuple(pixel[1:3]) == ((kind - 1) * 20,) * 2
            assert tuple(np.asarray(test.draw(kind, number, 56))[30, 30, 1:3]) == ((kind - 1) * 20 + 5,) * 2
    reds = {int(np.asarray(train.draw(1, n, 56))[30, 30, 0]) for n in range(20)}
    assert len(reds) == 5  # photos of all five batches
    task = Task.make("shisen-photos", preset="paper", perception={"path": str(tmp_path)})
    game = task.new_game()
    game.reset(0)
    assert task.draw(game).shape == (672, 672, 3)


def test_cifar10_files_that_are_none_are_named(tmp_path):
    with pytest.raises(ValueError, match="no CIFAR-10 data_batch"):
        Perception(tiles="cifar10", path=str(tmp_path)).tile_set(10)
    (tmp_path / "data_batch_1.bin").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="100 bytes"):
        Perception(tiles="cifar10", path=str(tmp_path)).tile_set(10)
    (tmp_path / "data_batch_1.bin").write_bytes(b"\xff" * 3073)
    with pytest.raises(ValueError, match="labelled 255"):
        Perception(tiles="cifar10", path=str(tmp_path)).tile_set(10)


def write_photos(folder, classes, num):
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for j in range(num):
            Image.new("RGB", (40, 30), (50 * i, 10 * j, 99)).save(folder / name / f"{j}.png")


def test_a_folder_of_photos_is_split_by_file(tmp_path):
    write_photos(tmp_path, ["cat", "hot_dog", "tree"], 10)
    sets = [Perception(tiles="folder", path=str(tmp_path), split=s).tile_set(3) for s in ("train", "heldout")]
    assert sets[0].names == ("-", "cat", "hot dog", "tree") and [s.num_pictures(1) for s in sets] == [8, 2]
    seen = [{tuple(np.asarray(s.draw(2, n, 28))[9, 9]) for n in range(s.num_pictures(2))} for s in sets]
    assert len(seen[0] | seen[1]) == 10 and not seen[0] & seen[1]
    task = Task.make(
        "shisen-photos", reasoning={"rows": 4, "cols": 3}, perception={"tiles": "folder", "path": str(tmp_path)}
    )
    assert task.reasoning.kinds == 3


def test_folders_train_and_test_are_the_variants(tmp_path):
    write_photos(tmp_path / "train", ["a", "b"], 5)
    write_photos(tmp_path / "test", ["a", "b"], 3)
    sets = [Perception(tiles="folder", path=str(tmp_path), split=s).tile_set(2) for s in ("train", "heldout")]
    assert [s.num_pictures(1) for s in sets] == [5, 3]


def test_folders_without_photos_are_named(tmp_path):
    with pytest.raises(ValueError, match="folder of images for each class"):
        Perception(tiles="folder", path=str(tmp_path)).tile_set(1)
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match="dog: no training image"):
        Perception(tiles="folder", path=str(tmp_path)).tile_set(1)


def test_too_few_photos_of_a_class_for_a_pairing_game_are_named(tmp_path):
    write_photos(tmp_path, ["cat", "dog", "tree"], 4)  # three of each for training
    with pytest.raises(ValueError, match="cat.*3 photos.*copies = 4"):
        Task.make(
            "shisen-photos", reasoning={"rows": 4, "cols": 3}, perception={"tiles": "folder", "path": str(tmp_path)}
        )


def test_a_standing_frame_draws_only_what_changed_and_ends_up_exact():
    renderer = Renderer(Perception(tiles="photos"), 6, 6, 9)
    canvas, rng = Canvas(renderer), np.random.default_rng(0)
    board = rng.integers(0, 10, (6, 6)).astype(np.uint8)
    looks = rng.integers(0, 65536, (6, 6)).astype(np.uint16)
    canvas.show(board, looks)
    canvas.frame[:112, :112] = 7  # a mark on a tile that won't change
    for _ in range(20):
        row, col = rng.integers(1, 6, 2)
        board[row, col] = rng.integers(0, 10)
        canvas.show(board, looks)
        assert (canvas.frame[:112, :112] == 7).all()
        assert (canvas.frame[112:] == renderer.draw(board, looks)[112:]).all()


def test_an_atlas_that_grew_too_large_starts_anew(monkeypatch):
    monkeypatch.setattr("envs.drawing._ATLAS_BYTES", 60 * 112 * 112 * 3)
    renderer, fresh = Renderer(Perception(tiles="photos"), 6, 6, 12), Renderer(Perception(tiles="photos"), 6, 6, 12)
    canvas, rng = Canvas(renderer), np.random.default_rng(0)
    for _ in range(8):
        board = rng.integers(0, 13, (6, 6)).astype(np.uint8)
        looks = rng.integers(0, 65536, (6, 6)).astype(np.uint16)
        fresh.generation = -1
        assert (canvas.show(board, looks) == Renderer(Perception(tiles="photos"), 6, 6, 12).draw(board, looks)).all()
    assert renderer.generation > 2


@pytest.mark.parametrize("limit", [1 << 30, 150_000])  # the second starts the atlas anew all the time
def test_threads_share_a_renderer(monkeypatch, limit):
    monkeypatch.setattr("envs.drawing._ATLAS_BYTES", limit)
    look = Perception(tiles="photos", tile_px=28)  # each kind in many photos
    rng = np.random.default_rng(0)
    boards = rng.integers(0, 10, (12, 4, 4)).astype(np.uint8)
    looks = rng.integers(0, 24, (12, 4, 4)).astype(np.uint16)
    alone = Renderer(look, 4, 4, 9)
    expected = [alone.draw(board, its).copy() for board, its in zip(boards, looks, strict=True)]
    shared = Renderer(look, 4, 4, 9)

    def draw(order):
        canvas = Canvas(shared)
        for number in order:
            assert np.array_equal(shared.draw(boards[number], looks[number]), expected[number])
            assert np.array_equal(canvas.show(boards[number], looks[number]), expected[number])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(draw, [rng.permutation(12) for _ in range(4)]))
    finally:
        sys.setswitchinterval(interval)


def test_frames_that_dont_fit_are_refused():
    renderer = Renderer(Perception(), 4, 4, 4)
    board, looks = np.ones((4, 4), np.uint8), np.zeros((4, 4), np.uint16)
    with pytest.raises(ValueError, match="C-contiguous"):
        renderer.draw(board, looks, np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(ValueError, match="C-contiguous"):
        renderer.draw(board, looks, np.zeros((672, 672, 4), np.uint8)[:, :, :3])


def test_every_tile_set_is_tested():
    assert set(TILE_SETS) == {*DRAWN, "cifar10", "folder"}


@pytest.mark.parametrize("level", range(len(PERCEPTION_LEVELS)))
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_colour_is_nearest_to_its_own_name_at_every_level(level, split):
    options = {key: value for key, value in PERCEPTION_LEVELS[level].items() if key != "offset"}
    perception = Perception(tiles="colors", split=split, **options)
    for px in (28, 56):
        look, inset = Look(perception, perception.tile_set(12), px), px // 3
        for kind, color in enumerate(PALETTE, 1):
            for variation in range(16):
                seen = look.tile(kind, variation)[inset:-inset, inset:-inset].mean((0, 1))
                near = {name: min(((seen - shade) ** 2).sum() for shade in both) for name, both in PALETTE.items()}
                assert min(near, key=near.get) == color


PIXELS = {
    "colors train": "926818c19ae26693",
    "colors heldout": "a264c2063b235826",
    "shapes train": "4ca8bd57f84107d4",
    "shapes heldout": "808b333709c40670",
    "numbers train": "de1ef2d339f6ea05",
    "numbers heldout": "d18a177b52b91021",
    "glyphs train": "c73fc268689f92f0",
    "glyphs heldout": "27681ffbef7caa28",
    "photos train": "1cf06dfeae5a5c1d",
    "photos heldout": "445ed908dda671b2",
}


@pytest.mark.parametrize("name", PIXELS)
def test_plain_tiles_of_28_pixels_are_those_that_the_shipped_models_have_seen(name):
    tiles, split = name.split()
    perception = Perception(tiles=tiles, split=split)
    tile_set = perception.tile_set(96 if tiles == "shapes" else 1)
    look, digest = Look(perception, tile_set, 28), hashlib.sha256()
    for kind in range(min(tile_set.num_kinds, 17 if tiles == "numbers" else 999) + 1):
        for picture in range(4 if tiles == "photos" else 1):
            digest.update(look.tile(kind, picture).tobytes())
    assert digest.hexdigest()[:16] == PIXELS[name]


def test_photos_have_a_frame_where_there_is_room_for_one():
    for px, framed in ((28, False), (56, True), (112, True)):
        tile = Look(Perception(tiles="photos"), Perception(tiles="photos").tile_set(12), px).tile(1, 0)
        edge = np.concatenate([tile[0], tile[-1], tile[:, 0], tile[:, -1]])
        assert (edge == edge[0]).all() == framed
