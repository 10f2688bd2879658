import math

import pytest

from forec_jax.report.charts import HEIGHT, MOST_POINTS, WIDTH, line_chart, short, ticks


def coordinates(curve):
    return [tuple(map(float, pair.split(","))) for pair in curve.path.split()]


def test_a_line_fills_the_chart_and_high_values_are_high():
    chart = line_chart("loss", {0: ("a", [(0, 3.0), (50, 1.0), (100, 2.0)])})
    assert coordinates(chart.curves[0]) == [(0, 0), (WIDTH / 2, HEIGHT), (WIDTH, HEIGHT / 2)]
    assert chart.curves[0].last == "2"


def test_lines_share_their_axes():
    chart = line_chart("loss", {0: ("a", [(0, 0.0), (10, 4.0)]), 3: ("b", [(5, 2.0), (20, 1.0)])})
    assert [curve.run for curve in chart.curves] == [0, 3]
    assert coordinates(chart.curves[1]) == [(WIDTH / 4, HEIGHT / 2), (WIDTH, HEIGHT * 3 / 4)]


def test_what_is_not_finite_is_left_out():
    chart = line_chart("loss", {0: ("a", [(0, 1.0), (1, math.nan), (2, 3.0)]), 1: ("b", [(0, math.inf)])})
    assert [len(coordinates(curve)) for curve in chart.curves] == [2]
    assert line_chart("loss", {0: ("a", [(0, math.nan)])}) is None
    assert line_chart("loss", {}) is None


def test_a_constant_lies_in_the_middle():
    chart = line_chart("kept", {0: ("a", [(4, 0.0)])})
    assert coordinates(chart.curves[0]) == [(WIDTH / 2, HEIGHT / 2)]


def test_a_long_line_is_thinned_out_to_its_last_point():
    chart = line_chart("loss", {0: ("a", [(step, step) for step in range(10_000)])})
    found = coordinates(chart.curves[0])
    assert len(found) <= MOST_POINTS + 1
    assert found[0] == (0, HEIGHT)
    assert found[-1] == (WIDTH, 0)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 5, 10]),
        (0.12, 0.31, [0.15, 0.2, 0.25, 0.3]),
        (2.3, 3.6, [2.5, 3, 3.5]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_there_are_two_to_seven_ticks():
    for number in range(1, 400):
        found = ticks(0.37 * number, 0.37 * number + 1.07**number)
        assert 2 <= len(found) <= 7, number


@pytest.mark.parametrize(
    ("value", "text"), [(12345.6, "12346"), (0.00012, "0.00012"), (2.0, "2"), (0.123456, "0.1235")]
)
def test_numbers_are_short(value, text):
    assert short(value) == text
