"""What the page says of a picture is what `vitlab predict` says, moved as asked; attention and heads are the model's own."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.models import write_ladder
from tests.support.records import fake_record
from vitlab.data import samples
from vitlab.data.augment import normalize
from vitlab.data.dataset import decode
from vitlab.demo import answers
from vitlab.demo.answers import Answer, Model
from vitlab.models.attention import class_attention
from vitlab.run import predict

ORIENTATION = 0x0112  # EXIF's tag


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    """The baseline, the student, and its teacher."""
    folder = write_ladder(tmp_path_factory.mktemp("runs"))
    return answers.load([predict.own(path.parent) for path in sorted(folder.rglob("record.json"))])


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)


def picture(path: Path, size: tuple[int, int] = (90, 60), mode: str = "RGB", **options: object) -> Path:
    """A file with a gradient in it, so that no two of its corners are alike."""
    y, x = np.mgrid[: size[1], : size[0]]
    values = np.stack([255 * x / size[0], 255 * y / size[1], np.full(x.shape, 40.0), 255 * x / size[0]], -1).astype(np.uint8)
    Image.fromarray(values[..., : len(mode)]).save(path, **options)
    return path


def test_the_answers_are_those_of_predict(models: list[Model], tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    image = answers.read(path).pixels
    for model in models:
        (found,) = answers.answer(model, [image])
        top = sorted(zip(found.shares.tolist(), model.record.dataset.classes, strict=True), reverse=True)[:3]
        line = predict.classify([path], predict.Candidate(model.record, "here", lambda m=model: m.net, bytes))[1]
        assert line == f"{path}: " + ", ".join(f"{name} {share:.1%}" for share, name in top)
        assert found.first == model.record.dataset.classes.index(top[0][1])


def test_each_head_answers_for_itself_and_all_together_by_their_mean(models: list[Model], noise: np.ndarray) -> None:
    baseline, student, teacher = models
    assert answers.answer(baseline, [noise])[0].heads == answers.answer(teacher, [noise])[0].heads == {}
    found = answers.answer(student, [np.zeros_like(noise), noise])[1]
    facts = student.record.dataset
    with torch.no_grad():
        logits = student.net.forward_heads(normalize(torch.from_numpy(noise)[None], torch.tensor(facts.mean), torch.tensor(facts.std)))
    logits = logits[:, 0].double().numpy()

    def softmax(z: np.ndarray) -> np.ndarray:
        return np.exp(z) / np.exp(z).sum()

    assert list(found.heads) == ["cls", "dist"]
    np.testing.assert_allclose(found.heads["cls"], softmax(logits[0]), rtol=1e-5)
    np.testing.assert_allclose(found.heads["dist"], softmax(logits[1]), rtol=1e-5)
    np.testing.assert_allclose(found.shares, softmax((logits[0] + logits[1]) / 2), rtol=1e-5)


def test_attention_is_that_of_the_image_and_sums_to_one(models: list[Model], noise: np.ndarray) -> None:
    baseline, student, teacher = models
    assert answers.answer(baseline, [noise])[0].maps is None
    assert answers.answer(teacher, [noise])[0].maps is None
    maps = answers.answer(student, [np.zeros_like(noise), noise])[1].maps
    assert maps.shape == (2, 2, 8, 8)  # tokens, heads, grid, grid
    np.testing.assert_allclose(maps.sum((-2, -1)), 1, rtol=1e-5)
    facts = student.record.dataset
    alone = class_attention(student.net, normalize(torch.from_numpy(noise)[None], torch.tensor(facts.mean), torch.tensor(facts.std)))
    np.testing.assert_allclose(maps, alone[0], rtol=1e-4)


def test_a_picture_is_moved_by_whole_pixels_and_its_values_multiplied(noise: np.ndarray) -> None:
    np.testing.assert_array_equal(answers.moved(noise, 0, 0, 1.0), noise)
    point = np.zeros((3, 32, 32), np.uint8)
    point[:, 5, 7] = 100, 200, 3
    found = answers.moved(point, 2, -3, 1.5)
    assert found[:, 2, 9].tolist() == [150, 255, 4]
    assert np.count_nonzero(found) == 3
    left = answers.moved(noise, -8, 8, 1.0)
    np.testing.assert_array_equal(left[:, 8:, :24], noise[:, :24, 8:])
    assert not left[:, :8].any()
    assert not left[:, :, 24:].any()
    np.testing.assert_array_equal(answers.moved(noise, 0, 0, 0.5), noise // 2)


def test_below_half_a_model_is_unsure() -> None:
    def said(*shares: float) -> Answer:
        return Answer(np.array(shares, np.float32), {}, None)

    assert said(0.499, 0.301, 0.2).unsure
    assert not said(0.3, 0.5, 0.2).unsure


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [("a.jpg", "RGB", {}), ("a.png", "RGBA", {}), ("a.webp", "RGB", {"lossless": True}), ("a.png", "L", {})],
    ids=["jpeg", "transparent", "webp", "grey"],
)
def test_a_file_is_read_as_everywhere(tmp_path: Path, name: str, mode: str, options: dict) -> None:
    path = picture(tmp_path / name, mode=mode, **options) if mode != "L" else tmp_path / name
    if mode == "L":
        Image.linear_gradient("L").save(path)
    found = answers.read(path)
    np.testing.assert_array_equal(found.pixels, decode(path))
    assert found.name == name
    with Image.open(io.BytesIO(found.shown)) as shown, Image.open(path) as file:
        assert (shown.mode, shown.size) == ("RGB", file.size)


def test_a_rotated_photograph_is_shown_upright_and_small(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # turned by a quarter: its right edge is up
    path = picture(tmp_path / "a.jpg", (2000, 1000), exif=exif)
    found = answers.read(path)
    np.testing.assert_array_equal(found.pixels, decode(path))
    with Image.open(io.BytesIO(found.shown)) as shown:
        assert shown.size == (320, 640)
        top, bottom = shown.getpixel((160, 5)), shown.getpixel((160, 634))
    assert top[0] < 20  # the file's left edge, where red is 0
    assert bottom[0] > 235


def test_the_hundred_images_are_read_from_the_code(models: list[Model]) -> None:
    found = answers.sample(34)
    assert found.name == "cat, test image"
    np.testing.assert_array_equal(found.pixels, samples.images()[34].transpose(2, 0, 1))


def test_a_teacher_stands_beside_its_student_if_it_is_the_one_that_taught_it(models: list[Model]) -> None:
    baseline, student, teacher = models
    assert answers.pairs(models) == [(baseline, None), (student, teacher)]
    assert answers.pairs([teacher]) == [(teacher, None)]
    other = Model(fake_record("resnet50", fingerprint="another"), teacher.net)
    assert answers.pairs([student, other]) == [(student, None), (other, None)]
    second = Model(fake_record("05_kd_r18", teacher=student.record.teacher), baseline.net)
    assert answers.pairs([second, student, teacher]) == [(second, teacher), (student, teacher)]
