"""Values of JSON are what they should be, or an error says what they are."""

import json

import pytest

from forec_jax import kinds


@pytest.mark.parametrize(
    ("kind", "right"),
    [
        (kinds.text, ["", "cat"]),
        (kinds.whole, [0, -3, kinds.LARGEST]),
        (kinds.number, [None, 0, 2.5, -1e300]),
        (kinds.listed, [[], [1, "a"]]),
        (kinds.mapping, [{}, {"a": 1}]),
    ],
)
def test_what_is_of_a_kind_is_given_back_and_nothing_else_is(kind, right):
    values = [None, True, 0, -3, kinds.LARGEST, kinds.LARGEST + 1, 10**400, 2.5, float("nan"), float("inf"), "", "cat"]
    values += [-1e300, [], [1, "a"], {}, {"a": 1}]
    for value in values:
        if json.dumps(value) in map(json.dumps, right):
            assert kind(value) is value
        elif kind is kinds.number and type(value) is int and abs(value) <= kinds.LARGEST:
            assert kind(value) == value
        else:
            with pytest.raises(TypeError, match="is not a"):
                kind(value)


def test_the_error_shows_the_value():
    with pytest.raises(TypeError, match="'cat' is not a whole number"):
        kinds.whole("cat")
    with pytest.raises(TypeError, match="'list' is not an object"):
        kinds.mapping([1])
