"""The page's HTML: numbers as they are, and no text of a file's or a record's can become markup."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.pages import EVIL, Page
from tests.support.records import fake_record
from vitlab.demo import cards
from vitlab.demo.answers import Answer, Model, Picture
from vitlab.figures.grids import overlay


class Heads:
    head_names = ("cls", "dist")


CLASSES = ("cat", "dog", EVIL)
STUDENT = Model(fake_record("06_kd_r50_class_attention", classes=CLASSES, title=EVIL, metrics={"test_top1": 81.25, "test_top5": 99.0, "validation_top1": 80.0}), Heads())  # fmt: skip
TEACHER = Model(fake_record("resnet50", classes=CLASSES), Heads())
TEACHER_OF_TEN = Model(fake_record("resnet50"), Heads())
NOW = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
MAPS = np.zeros((2, 3, 8, 8), np.float32)
MAPS[:, :, 7, 0] = 1
BEFORE = Answer(np.array([0.9, 0.06, 0.04], np.float32), {}, None)
AFTER = Answer(np.array([0.42, 0.36, 0.22], np.float32), {"cls": np.array([0.7, 0.2, 0.1]), "dist": np.array([0.2, 0.7, 0.1])}, MAPS)


def parsed(html: str, tmp_path: Path) -> Page:
    path = tmp_path / "page.html"
    path.write_text(html, encoding="utf-8")
    return Page(path)


def attributes(page: Page, tag: str, style: str) -> list[dict[str, str]]:
    return [attrs for name, attrs in page.tags if name == tag and style in attrs.get("class", "").split()]


def test_a_card_has_the_answers_of_the_student_its_heads_and_its_teacher(tmp_path: Path) -> None:
    page = parsed(cards.cards([[(STUDENT, BEFORE, AFTER), (TEACHER, BEFORE, BEFORE)]], NOW), tmp_path)
    assert "Test top-1 81.2 %" in page.text
    assert "Its teacher · test top-1" in page.text
    assert "Class headcat 70.0 %" in page.text
    assert "Distillation headdog 70.0 %" in page.text
    bars = attributes(page, "span", "bar")
    assert [bar["aria-valuenow"] for bar in bars] == ["42.0", "36.0", "22.0", "90.0", "6.0", "4.0"]
    assert bars[0]["aria-valuetext"] == "42.0 %, before the change 90.0 %"
    assert bars[3]["aria-valuetext"] == "90.0 %"
    assert [mark["style"] for mark in attributes(page, "i", "was")] == ["left:90.00%", "left:6.00%", "left:4.00%"]
    assert page.text.count("None of these? All below 50 %.") == 1
    assert len(attributes(page, "section", "unsure")) == 1


def test_attention_is_drawn_as_in_the_report_and_told_in_words(tmp_path: Path) -> None:
    page = parsed(cards.cards([[(STUDENT, BEFORE, AFTER)]], NOW), tmp_path)
    looks = attributes(page, "img", "look")
    assert looks[1]["alt"] == "Class token, attention head 2: looks most at the lower left"
    assert looks[3]["alt"] == "Distillation token, attention head 1: looks most at the lower left"
    assert len(looks) == 6
    tile = overlay(NOW.transpose(1, 2, 0)[None], MAPS[0, :1])[0]
    assert {look["src"] for look in looks} == {cards.data_uri(cards.png(tile), "png")}
    assert attributes(parsed(cards.cards([[(TEACHER, BEFORE, BEFORE)]], NOW), tmp_path), "img", "look") == []


@pytest.mark.parametrize(("row", "column", "said"), [(0, 0, "upper left"), (3, 4, "centre"), (7, 4, "lower edge"), (2, 7, "upper right"), (3, 0, "left edge")])  # fmt: skip
def test_the_place_of_the_largest_weight(row: int, column: int, said: str) -> None:
    attention = np.full((8, 8), 0.01)
    attention[row, column] = 0.3
    assert cards.place(attention) == said


def test_the_verdict_counts_the_models(tmp_path: Path) -> None:
    dog = Answer(np.array([0.2, 0.7, 0.1]), {}, None)
    page = parsed(cards.verdict([(STUDENT, BEFORE), (STUDENT, AFTER), (TEACHER, dog)], False), tmp_path)
    assert page.text == "cat (2 of 3), dog (1 of 3). None of these? 1 of 3 is below 50 %. "
    assert "None of these" not in cards.verdict([(STUDENT, BEFORE)], False)
    assert "before the change" in cards.verdict([(STUDENT, BEFORE)], True)


def test_no_text_becomes_markup(tmp_path: Path) -> None:
    picture = Picture(EVIL, NOW, b"\x89PNG")
    html = "".join(
        [
            cards.intro([STUDENT], EVIL), cards.view(picture, NOW, True), cards.problem(EVIL), cards.verdict([(STUDENT, AFTER)], True),
            cards.cards([[(STUDENT, BEFORE, AFTER)]], NOW),
        ]
    )  # fmt: skip
    page = parsed(html, tmp_path)
    assert page.text.count(EVIL) >= 5
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [attrs for tag, attrs in page.tags if "onerror" in attrs or "quote" in attrs]
    assert all(attrs["src"].startswith("data:image/") for tag, attrs in page.tags if tag == "img")


def test_the_page_says_what_the_models_know(tmp_path: Path) -> None:
    page = parsed(cards.intro([Model(fake_record(), Heads()), TEACHER], "ledger-cifar10"), tmp_path)
    assert "2 models of ledger-cifar10 (cifar10, profile full, seed 0) know 10 classes and nothing else: airplane, automobile" in page.text
    assert "Below 50 %" in page.text
    assert "One model of x (cifar10, profile full, seed 0) knows 10 classes" in parsed(cards.intro([TEACHER_OF_TEN], "x"), tmp_path).text


def test_each_of_the_hundred_images_has_a_button_with_a_name(tmp_path: Path) -> None:
    buttons = attributes(parsed(cards.chooser(), tmp_path), "button", "sample")
    assert [button["data-index"] for button in buttons] == [str(i) for i in range(100)]
    assert buttons[0]["aria-label"] == "airplane, image 1 of 10"
    assert buttons[99]["aria-label"] == "truck, image 10 of 10"
    assert [button["tabindex"] for button in buttons] == ["0"] + ["-1"] * 99
    assert buttons[35]["style"] == "background-position:55.5556% 33.3333%"
