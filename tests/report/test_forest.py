"""report/forest.py: the effects, intervals and verdicts of a ledger, drawn."""

from __future__ import annotations

from pathlib import Path

from tests.support.pages import EVIL, files
from vitlab.claims import ledger, verdicts
from vitlab.claims.declarations import Stage
from vitlab.figures import style
from vitlab.report import forest


def made_up(**changes: object) -> verdicts.Result:
    two = tuple(verdicts.MeasuredArm(label=f"arm {i}", fingerprint="f", records={0: "a.json", 1: "b.json"}) for i in range(2))
    values = {
        "id": "made-up", "statement": "One is better than the other.", "source": "report", "declaration": "d", "arms": two,
        "metric": "test_top1", "low_bound": 0.0, "high_bound": None, "claimed": 0.4, "verdict": "supported", "seeds": (0, 1),
        "values": (1.0, 2.0), "effect": 1.5, "low": 0.5, "high": 2.5, "p": 0.01, "p_holm": 0.02, "primary": True,
    }  # fmt: skip
    return verdicts.Result(**values | changes)


EXACT = {"seeds": (), "values": (), "low": None, "high": None, "p": None, "p_holm": None}
MADE_UP = (
    made_up(),
    made_up(verdict="refuted", effect=-2.0, low=-3.0, high=-1.0, claimed=None, statement=EVIL),
    made_up(verdict="undecided", effect=0.1, low=-1.0, high=1.2, more_seeds=(4, 9), high_bound=0.5, low_bound=-0.5),
    made_up(verdict="interim", effect=0.9, low=-2.0, high=3.9, p=None, p_holm=None),
    made_up(unit="%", metric="gflops", effect=-31.0, low_bound=None, high_bound=-25.0, claimed=-25.0, **EXACT),
    made_up(unit="images", metric="confusion_lead.cat.dog", effect=40.0, low=21.0, high=59.0, claimed=None),
    made_up(verdict="not measured", effect=None, **EXACT),
)


def book(*results: verdicts.Result) -> ledger.Book:
    return ledger.Book(
        profile="overnight", dataset="cifar10", devices=("a CPU",), confidence=0.95, first_seed=0, stages=(Stage(seeds=3, alpha=0.05),),
        tested=len(results), families=(), results=results,
    )  # fmt: skip


def test_forest_is_drawn_the_same_each_time_in_both_themes(tmp_path: Path) -> None:
    paths = forest.draw(book(*MADE_UP), tmp_path / "a")
    forest.draw(book(*MADE_UP), tmp_path / "b")
    assert [p.name for p in paths] == ["claims-light.svg", "claims-dark.svg"]
    assert files(tmp_path / "a") == files(tmp_path / "b")
    for path, theme, other in zip(paths, (style.LIGHT, style.DARK), (style.DARK, style.LIGHT)):
        svg = path.read_text(encoding="utf-8")
        assert "<text" not in svg
        assert "date" not in svg.lower()
        assert theme.surface in svg
        assert other.ink not in svg
        assert all(forest.verdict_color(verdict, theme) in svg for verdict in forest.MARKERS)


def test_each_unit_has_its_own_axis() -> None:
    panels = forest.group_by_axis(book(*MADE_UP).measured)
    assert [[r.unit for r in panel] for panel in panels] == [["points"] * 4, ["%"], ["images"]]
    with style.style(style.LIGHT):
        points, *others = forest.forest(book(*MADE_UP), style.LIGHT).axes[:3]
    low, high = points.get_xlim()
    assert low < -3
    assert 2.5 < high < 5
    assert len(others) == 2


def test_families_have_their_own_axes_and_those_without_one_come_after() -> None:
    made = [made_up(family=family) for family in ("", "plain", "hybrid", "plain")] + [made_up(unit="%", metric="gflops", family="")]
    panels = forest.group_by_axis(made)
    assert [[(r.unit, r.family) for r in panel] for panel in panels] == [
        [("points", "plain")] * 2, [("points", "hybrid")], [("points", "")], [("%", "")],
    ]  # fmt: skip
    with style.style(style.LIGHT):
        labels = [ax.get_xlabel() for ax in forest.forest(book(*made), style.LIGHT).axes]
    assert [label for label in labels if label.startswith("difference")] == [
        "difference (points), plain", "difference (points), hybrid", "difference (points), each with its own spread",
    ]  # fmt: skip


def test_interval_and_region_stand_where_the_numbers_are() -> None:
    with style.style(style.LIGHT):
        ax = forest.forest(book(made_up(high_bound=1.0)), style.LIGHT).axes[0]
    (region,) = ax.patches
    assert (region.get_x(), region.get_width()) == (0.0, 1.0)
    (bar,) = ax.containers
    (segment,) = bar.lines[2][0].get_segments()
    assert segment[:, 0].tolist() == [0.5, 2.5]
