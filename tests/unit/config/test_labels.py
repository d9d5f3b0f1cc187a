"""``Labels`` says of every config what nnU-Net's own ``LabelManager`` does of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from medseg.config import Labels


@st.composite
def declarations(draw: st.DrawFn) -> tuple[dict[str, Any], list[int] | None]:
    """Labels and their ``regions_class_order``: plain, of regions, with and without ``ignore``."""
    highest = draw(st.integers(1, 4))
    value = st.integers(0, highest)
    if draw(st.booleans()):
        own: list[Any] = draw(st.permutations(range(1, highest + 1)))
        own = [[each] if draw(st.booleans()) else each for each in own]
    else:
        own = draw(
            st.lists(value | st.lists(value, min_size=1, max_size=3), min_size=1, max_size=4)
        )
    labels = {"background": 0} | {f"structure {name}": each for name, each in enumerate(own)}
    order = draw(st.permutations(range(1, len(own) + 1)) | st.none())
    if draw(st.booleans()):
        labels["ignore"] = draw(st.integers(highest, highest + 2))
    return dict(draw(st.permutations(list(labels.items())))), order


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(declarations())
def test_what_is_accepted_means_the_same_to_nnunet(
    declared: tuple[dict[str, Any], list[int] | None],
) -> None:
    try:
        labels = Labels.of(*declared)
    except ValueError:
        assume(False)
    theirs = LabelManager(*declared)
    assert labels.has_regions == theirs.has_regions
    assert labels.ignore == theirs.ignore_label
    ignored = [] if labels.ignore is None else [labels.ignore]
    assert list(labels.values) == theirs.all_labels + ignored
    keys = theirs.foreground_regions if labels.has_regions else theirs.foreground_labels
    assert labels.structures.keys() == {str(key) for key in keys}
    for key in keys:
        assert labels.structures[str(key)].values == (key if isinstance(key, tuple) else (key,))
    assert len(labels.per_class) == len(keys)

    # a voxel for each structure, where its head alone is sure; in the last one all are
    heads = np.hstack([np.eye(len(keys)), np.ones((len(keys), 1))])
    if not labels.has_regions:  # the background's head
        heads = np.vstack([np.zeros(heads.shape[1]), heads])
    segmented = theirs.convert_probabilities_to_segmentation(heads)
    assert list(segmented[:-1]) == [labels.painted[name] for name in labels.per_class]
    if labels.has_regions:
        assert segmented[-1] == list(labels.painted.values())[-1]
    assert labels.drawn.get("ignore") == labels.ignore
    assert "ignore" not in labels.painted


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ({"background": 0, "a": 1, "ignore": 3}, None),
        ({"background": 0, "a": 1, "ignore": [2]}, None),
        ({"background": 0, "a": [1, 2], "b": 2, "ignore": 2}, [1, 2]),
        ({"background": 0, "a": [1, 2], "b": 2}, [1]),
        ({"background": 0, "a": [1, 2], "b": 2}, None),
        ({"background": 1, "a": 2}, None),
        ({"a": 1}, None),
    ],
)
def test_what_nnunet_refuses_is_refused(labels: dict[str, Any], order: list[int] | None) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        LabelManager(labels, order)
    with pytest.raises(ValueError, match=r"^(labels|regions_class_order): "):
        Labels.of(labels, order)


def test_a_list_of_one_value_is_no_region() -> None:
    """As in ``LabelManager``: only two values make a region, and only regions need an order."""
    labels = Labels.of({"background": 0, "b": [2], "a": 1, "ignore": 3})
    assert not labels.has_regions
    assert labels.painted == {"background": 0, "b": 2, "a": 1}
    assert labels.names == {"2": "b", "1": "a"}
    assert labels.per_class == ("a", "b")
    assert (labels.values, labels.ignore) == ((0, 1, 2, 3), 3)


def test_regions_keep_nnunets_keys_and_order() -> None:
    labels = Labels.of({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, [2, 1])
    assert labels.painted == {"background": 0, "whole": 2, "core": 1}
    assert labels.drawn == {"background": 0, "whole": 2, "core": 1, "ignore": 3}
    assert labels.names == {"(1, 2)": "whole", "2": "core"}
    assert labels.structures == {"(1, 2)": ("whole", (1, 2)), "2": ("core", (2,))}
    assert labels.per_class == ("whole", "core")
