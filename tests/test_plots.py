"""Pictures: what they show, read from matplotlib's objects, and how they are written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fedsim.errors import ConfigError
from fedsim.report import plots, split_plots, style
from fedsim.report.intervals import half_width

PALETTE = [colour.lower() for colour in style.COLOURS]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were to be written."""
    figures: list[Figure] = []
    monkeypatch.setattr(style, "save", lambda figure, path: figures.append(figure))
    return figures


def history(**columns: list[float]) -> pd.DataFrame:
    """Return a history of three rounds in which what is not given is NaN."""
    names = ["test_accuracy", "local_accuracy", "test_r2", "local_r2", *plots.DRIFTS]
    return pd.DataFrame({name: columns.get(name, [np.nan] * 3) for name in names})


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_accuracy_is_a_line_per_variant_of_the_mean_with_its_interval(drawn: list[Figure]) -> None:
    runs = [
        [[0.1, 0.5, 0.8], [0.1, 0.55, 0.7], [0.1, 0.45, 0.3]],
        [[0.1, 0.3, 0.61], [0.1, 0.3, 0.59], [0.1, 0.3, 0.57]],
    ]
    made = [[history(test_accuracy=a, local_accuracy=[0.0, 0.2, 0.4]) for a in seeds] for seeds in runs]
    plots.plot_accuracy([("A", made[0]), ("B", made[1])], "x.png", "digits, 7 clients")
    (axes,) = drawn[0].axes
    for line, seeds, colour in zip(axes.lines, runs, PALETTE, strict=False):
        np.testing.assert_allclose(np.array(line.get_xydata()), np.column_stack([[0, 1, 2], np.mean(seeds, axis=0)]))
        assert (to_hex(line.get_color()), line.get_linestyle()) == (colour, "-")
    texts = [note for note in axes.texts if note.get_text()]
    assert [note.get_text() for note in texts] == ["A  0.600", "B  0.590"]
    assert [to_hex(note.get_color()) for note in texts] == PALETTE[:2]
    heights = [float(note.xy[1]) for note in texts]  # type: ignore[attr-defined]
    assert heights[0] - heights[1] == pytest.approx(0.055)  # as far apart as the text is high
    assert len(axes.lines) == len(axes.collections) == 2
    edges: Any = axes.collections[0].get_paths()[0].vertices
    at_one = edges[edges[:, 0] == 1, 1]
    half = half_width([0.5, 0.55, 0.45])
    assert (at_one.min(), at_one.max()) == pytest.approx((0.5 - half, 0.5 + half))
    assert edges[:, 1].max() == 1  # no accuracy is above 1, nor is its interval drawn there
    assert [to_hex(band.get_facecolor()[0]) for band in cast(Any, axes.collections)] == PALETTE[:2]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 2), (0, 1))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("round", "test accuracy of the global model")
    title = "Federated learning on digits, 7 clients (mean of 3 seeds, 95 % interval shaded)"
    assert axes.get_title(loc="left") == title
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_local_r2_of_one_seed_has_no_interval(drawn: list[Figure]) -> None:
    longer = pd.concat([history(local_r2=[0.1, 0.2, 0.3])] * 2)
    plots.plot_accuracy([("A", [history(local_r2=[0.0, 0.5, 0.6])]), ("B", [longer])], "x.png", "d", "r2", "local")
    (axes,) = drawn[0].axes
    assert axes.lines[0].get_ydata() == pytest.approx([0.0, 0.5, 0.6])
    assert axes.get_ylabel() == "R² of clients' models on their own examples"
    assert axes.get_title(loc="left") == "Federated learning on d (one seed)"
    assert not axes.collections
    assert axes.get_xlim() == (0, 5)  # the longest variant


def test_two_seeds_have_no_band_and_the_title_says_so(drawn: list[Figure]) -> None:
    seeds = [history(test_accuracy=[0.1, 0.5, 0.8]), history(test_accuracy=[0.1, 0.6, 0.7])]
    plots.plot_accuracy([("A", seeds), ("B", seeds)], "x.png", "d")
    (axes,) = drawn[0].axes
    assert axes.lines[0].get_ydata() == pytest.approx([0.1, 0.55, 0.75])
    assert not axes.collections
    assert axes.get_title(loc="left") == "Federated learning on d (mean of 2 seeds: no interval)"


def test_a_run_that_stops_early_counts_with_its_last_value(drawn: list[Figure]) -> None:
    seeds = [history(test_accuracy=[0.1, 0.5, 0.8]), history(test_accuracy=[0.1, 0.6, 0.7]).iloc[:2]]
    plots.plot_accuracy([("A", seeds)], "x.png", "d")
    (axes,) = drawn[0].axes
    assert axes.lines[0].get_ydata() == pytest.approx([0.1, 0.55, 0.7])
    assert axes.get_xlim() == (0, 2)


def test_variants_beyond_the_palette_are_dashed(drawn: list[Figure]) -> None:
    plots.plot_accuracy([(str(k), [history(test_accuracy=[0.1, 0.2, 0.3])]) for k in range(9)], "x.png", "d")
    lines = drawn[0].axes[0].lines
    assert [line.get_linestyle() for line in lines] == ["-"] * 8 + ["--"]
    assert [to_hex(line.get_color()) for line in lines] == [*PALETTE, PALETTE[0]]


def test_client_drift_has_a_panel_per_measure(drawn: list[Figure]) -> None:
    columns = {
        "client_drift": [0.0, 3.0, 2.0],
        "update_cosine": [0.1, 0.9, -0.9],
        "gradient_diversity": [1.0, 4.0, 8.0],
    }
    other = {"client_drift": [0.0, 0.1, 4.0], "update_cosine": [0.1, 1.0, -1.0], "gradient_diversity": [1.0, 5.0, 2.0]}
    third = {name: list(np.mean([columns[name], other[name]], axis=0)) for name in columns}
    made = [history(**columns), history(**other), history(**third)]
    plots.plot_drift([("A", made), ("B", [history(**other)])], "x.png", "digits")
    panels = drawn[0].axes
    assert [panel.get_ylabel() for panel in panels] == [
        "client drift\n$\\|w_k - w\\|$",
        "cosine between\nclient updates",
        "gradient\ndiversity",
    ]
    for panel, name in zip(panels, columns, strict=True):
        assert panel.lines[0].get_ydata() == pytest.approx(np.mean([columns[name], other[name]], axis=0)), name
        assert panel.lines[1].get_ydata() == pytest.approx(other[name]), name
    low, high = (
        np.array([f(cast(Any, panel.collections[0]).get_paths()[0].vertices[:, 1]) for panel in panels])
        for f in (min, max)
    )
    assert low.tolist() == [0, -1, 1e-9]  # no interval reaches beyond what the measure can be
    assert high[1] == 1
    assert high[0] == pytest.approx(3 + half_width([2, 4, 3]))
    assert [panel.get_yscale() for panel in panels] == ["linear", "linear", "log"]
    assert panels[2].get_ylim() == (0.5, 16)
    assert [panel.get_xlabel() for panel in panels] == ["", "", "round"]
    assert all(float(tick).is_integer() for tick in panels[-1].get_xticks())
    assert legend(drawn[0]) == ["A", "B"]
    assert [to_hex(line.get_color()) for line in drawn[0].legends[0].get_lines()] == PALETTE[:2]
    said = "Client drift on digits (mean of 1 to 3 seeds, 95 % interval shaded)"
    assert drawn[0].get_suptitle() == said
    plots.plot_drift([("A", [history(weight_divergence=[0.0, 0.5, 0.7])])], "x.png", "digits")
    assert [panel.get_ylabel() for panel in drawn[1].axes] == ["weight\ndivergence"]
    plots.plot_drift([("A", [history()])], "x.png", "digits")
    assert [(panel.get_ylabel(), panel.get_xlabel(), len(panel.lines)) for panel in drawn[2].axes] == [("", "round", 0)]


def test_scores_by_skew_are_a_point_per_client_with_their_rank_correlation(drawn: list[Figure]) -> None:
    falling = np.array([[0.1, 0.9], [0.5, 0.8], [1.5, 0.1]])
    points = [("A", falling), ("B", np.full((3, 2), 0.5)), ("C", falling[:2]), ("D", np.tile(falling, (70, 1)))]
    plots.plot_score_by_skew([*points, ("E", falling * [0, 1]), ("F", falling * [1, 0])], "x.png", "digits", "r2")
    (axes,) = drawn[0].axes
    np.testing.assert_allclose(np.asarray(axes.collections[0].get_offsets()), falling)
    assert [to_hex(found.get_facecolor()[0]) for found in cast(Any, axes.collections)] == PALETTE[:6]
    assert [float(cast(Any, found).get_sizes()[0]) for found in axes.collections[:4:3]] == pytest.approx(
        [40, 4000 / 210]
    )
    correlation = "rank correlation -1.00"
    assert legend(drawn[0]) == [f"A, {correlation}", "B", "C", f"D, {correlation}", "E", "F"]
    assert axes.get_xlabel() == "label skew: earth mover's distance between client and population"
    assert axes.get_ylabel() == "R² on the client's own examples"
    assert axes.get_title(loc="left") == "Local R² against label skew: digits"
    assert axes.get_ylim()[1] == 1.02


def test_a_variant_that_was_not_evaluated_has_no_points(drawn: list[Figure]) -> None:
    plots.plot_score_by_skew([("A", np.zeros((0, 2))), ("B", np.full((3, 2), 0.5))], "x.png", "digits")
    assert legend(drawn[0]) == ["B"]


def test_bars_show_how_many_examples_of_each_label_clients_hold(drawn: list[Figure]) -> None:
    counts = np.array([[0, 5, 1], [4, 0, 0]])
    split_plots.plot_splits(
        {"A": counts, "B": counts, "C": counts[:1]}, "x.png", "pets", label_names=["cat", "dog", "eel"]
    )
    panels = drawn[0].axes
    assert [panel.get_title(loc="left") for panel in panels[:3]] == [
        "A: 1.5 labels per client",
        "B: 1.5 labels per client",
        "C: 2.0 labels per client",
    ]
    assert [panel.axison for panel in panels] == [True, True, True, False]
    tops = [float(polygon.get_paths()[0].vertices[:, 1].max()) for polygon in cast(Any, panels[0].collections)]
    assert tops == [4, 5, 6]  # stacked: the client of cats, then the other's dogs, and its eel on top
    assert panels[0].get_xlim() == (-0.5, 1.5)
    assert (panels[0].get_xlabel(), panels[0].get_ylabel()) == ("clients", "examples")
    assert legend(drawn[0]) == ["cat", "dog", "eel"]
    assert drawn[0].get_suptitle() == "Label distribution per client: pets"
    split_plots.plot_splits({"A": np.ones((1500, 21), dtype=int)}, "x.png", "pets")
    assert not drawn[1].legends  # too many labels for one
    split_plots.plot_splits({"A": np.ones((2, 20), dtype=int)}, "x.png", "pets")
    assert legend(drawn[2]) == [str(k) for k in range(20)]
    assert drawn[1].axes[0].get_xlabel() == "clients (100 of 1,500)"


@pytest.mark.parametrize("kind", ["bars", "bubbles"])
def test_splits_of_datasets_with_different_numbers_of_labels(drawn: list[Figure], kind: str) -> None:
    split_plots.plot_splits({"A": np.ones((4, 2), int), "B": np.ones((4, 11), int)}, "x.png", "pets", kind)
    first, second = drawn[0].axes
    if kind == "bars":
        assert legend(drawn[0]) == [str(label) for label in range(11)]
        colours = [
            [to_hex(bar.get_facecolor()[0]) for bar in cast(Any, panel.collections)] for panel in (first, second)
        ]
        assert colours[0] == colours[1][:2]
    else:
        assert [tick.get_text() for tick in first.get_yticklabels()] == ["0", "1"]


def test_bubbles_are_as_large_as_what_a_client_holds(drawn: list[Figure]) -> None:
    split_plots.plot_splits({"A": np.array([[0, 5], [20, 0]])}, "x.png", "pets", "bubbles", ["a" * 20, "b"])
    (axes,) = drawn[0].axes
    found = axes.collections[0]
    assert np.asarray(found.get_offsets()).tolist() == [[0, 0], [1, 1]]
    sizes = cast(Any, found).get_sizes()
    assert sizes[0] / sizes[1] == pytest.approx(4)  # their areas
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a" * 13 + "…", "b"]
    assert (axes.get_ylabel(), axes.get_ylim(), drawn[0].legends) == ("label", (-0.7, 1.7), [])
    split_plots.plot_splits({"A": np.ones((90, 2), dtype=int)}, "x.png", "pets", "bubbles")
    assert drawn[1].axes[0].get_xlabel() == "clients (60 of 90)"


@pytest.mark.parametrize(("largest", "scale"), [(7, "linear"), (60, "linear"), (900, "log")])
def test_sizes_are_a_histogram_with_the_median(drawn: list[Figure], largest: int, scale: str) -> None:
    counts = np.array([[3, 2], [4, 1], [largest, 0]])
    split_plots.plot_splits({"A": counts}, "x.png", "pets", "sizes")
    (axes,) = drawn[0].axes
    heights = [patch.get_height() for patch in axes.patches]  # type: ignore[attr-defined]
    assert (heights[0], heights[-1], sum(heights)) == (2, 1, 3)
    assert axes.get_xscale() == scale
    assert np.unique(axes.lines[0].get_xdata()).tolist() == [5]
    [word] = cast(Any, axes.texts)
    assert (word.get_text(), word.xy, word.xycoords) == ("median 5", (5, 1), ("data", "axes fraction"))
    assert re.fullmatch(r"A: Gini 0\.\d\d", axes.get_title(loc="left"))
    assert drawn[0].get_suptitle() == "Examples per client: pets"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("examples per client", "clients")


def test_sizes_include_clients_without_examples(drawn: list[Figure]) -> None:
    for sizes in ([0, 0, 3], [0, 0, 900]):
        split_plots.plot_splits({"A": np.array(sizes)[:, None]}, "x.png", "pets", "sizes")
        (axes,) = drawn[-1].axes
        heights = [patch.get_height() for patch in axes.patches]  # type: ignore[attr-defined]
        assert (heights[0], heights[-1], sum(heights)) == (2, 1, 3)


def test_a_kind_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="kind is 'bar'; allowed: bars, bubbles, sizes; did you mean 'bars'"):
        split_plots.plot_splits({"A": np.ones((2, 2))}, "x.png", "pets", "bar")


def test_a_picture_is_written_in_the_format_of_its_name_at_150_dots_an_inch(tmp_path: Path) -> None:
    style.save(Figure(figsize=(2, 1)), tmp_path / "a.PNG")
    header = (tmp_path / "a.PNG").read_bytes()[:24]
    assert [int.from_bytes(header[k : k + 4], "big") for k in (16, 20)] == [300, 150]
    with pytest.raises(ConfigError, match=r"^the suffix of the picture 'nowhere/a' is ''; allowed: .*pdf, .*png"):
        style.save(Figure(), "nowhere/a")
