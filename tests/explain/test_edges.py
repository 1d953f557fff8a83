"""Convolution by the textbook's numbers: edges, colours, shapes, and a filter that is learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detkit.explain.drawings import answers_as_image
from detkit.explain.edges import EDGE_FILTERS, TEXTBOOK_IMAGE, filter_response, learn_filter
from detkit.explain.summary import summarise_network


@pytest.mark.parametrize(("name", "peak"), [("vertical", 30), ("sobel", 40), ("scharr", 160)])
def test_light_beside_dark(name: str, peak: float) -> None:
    assert filter_response(TEXTBOOK_IMAGE, EDGE_FILTERS[name]).tolist() == [[0, peak, peak, 0]] * 4
    assert filter_response(TEXTBOOK_IMAGE[:, ::-1], EDGE_FILTERS[name]).tolist() == [[0, -peak, -peak, 0]] * 4
    assert not filter_response(TEXTBOOK_IMAGE.T, EDGE_FILTERS[name]).any()


def test_an_edge_of_the_other_direction() -> None:
    assert filter_response(TEXTBOOK_IMAGE.T, EDGE_FILTERS["horizontal"]).T.tolist() == [[0, 30, 30, 0]] * 4
    assert not filter_response(TEXTBOOK_IMAGE, EDGE_FILTERS["horizontal"]).any()


def test_a_filter_that_reads_red_only() -> None:
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 255, (6, 6, 3))
    changed = image.copy()
    changed[..., 1:] = rng.uniform(0, 255, (6, 6, 2))
    assert np.array_equal(filter_response(image, EDGE_FILTERS["red"]), filter_response(changed, EDGE_FILTERS["red"]))
    changed[2, 2, 0] += 1
    assert not np.array_equal(
        filter_response(image, EDGE_FILTERS["red"]), filter_response(changed, EDGE_FILTERS["red"])
    )
    np.testing.assert_allclose(
        filter_response(image, EDGE_FILTERS["red"]), filter_response(image[..., 0], EDGE_FILTERS["vertical"])
    )


@pytest.mark.parametrize("colours", [(), (3,)])
def test_the_same_as_a_convolution_layer(colours: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    image, weights = rng.normal(size=(7, 9, *colours)), rng.normal(size=(3, 3, *colours))

    def planes(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x.reshape(*x.shape[:2], -1)).permute(2, 0, 1)[None]

    expected = F.conv2d(planes(image), planes(weights))[0, 0].numpy()
    np.testing.assert_allclose(filter_response(image, weights), expected)


def test_the_flip_makes_it_associative() -> None:
    kernel = np.array([[3, 4, 5], [1, 0, 2], [-1, 9, 7]])
    flipped = kernel[::-1, ::-1]
    assert flipped.tolist() == [[7, 9, -1], [2, 0, 1], [5, 4, 3]]

    def convolved(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return filter_response(np.pad(a, len(b) - 1), b[::-1, ::-1])

    def correlated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return filter_response(np.pad(a, len(b) - 1), b)

    a, b = np.random.default_rng(2).normal(size=(2, 3, 3))
    np.testing.assert_allclose(convolved(convolved(a, b), kernel), convolved(a, convolved(b, kernel)))
    assert not np.allclose(correlated(correlated(a, b), kernel), correlated(a, correlated(b, kernel)))


@pytest.mark.parametrize("name", EDGE_FILTERS)
def test_gradient_descent_finds_the_filter_from_its_answers(name: str) -> None:
    found = learn_filter(np.random.default_rng(3).uniform(0, 255, (40, 40, 3)), EDGE_FILTERS[name])
    np.testing.assert_allclose(found.weights, EDGE_FILTERS[name], atol=1e-6)
    assert found.error < 1e-7
    assert found.steps < 5000


def test_where_filters_answer_alike_one_of_them_is_found() -> None:
    found = learn_filter(TEXTBOOK_IMAGE, EDGE_FILTERS["sobel"])
    assert found.error < 1e-9
    assert np.abs(found.weights - EDGE_FILTERS["sobel"]).max() > 0.1
    np.testing.assert_allclose(filter_response(TEXTBOOK_IMAGE, found.weights), [[0, 40, 40, 0]] * 4, atol=1e-9)
    assert learn_filter(np.zeros((5, 5)), EDGE_FILTERS["sobel"], steps=3).error == 0


def test_answers_as_a_image() -> None:
    drawn = answers_as_image(np.array([[0.0, 5, -10], [10, 0, 0]]))
    assert drawn[..., 0].tolist() == [[128, 191, 0], [255, 128, 128]]
    assert answers_as_image(np.zeros((2, 2))).tolist() == [[[128] * 3] * 2] * 2


@pytest.mark.parametrize(
    ("image", "weights", "reason"),
    [((2, 5), (3, 3), "smaller"), ((5, 5), (3, 3, 3), "does not fit"), ((5, 5, 4), (3, 3, 3), "does not fit")],
)
def test_what_does_not_fit(image: tuple[int, ...], weights: tuple[int, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        filter_response(np.zeros(image), np.zeros(weights))


def shape(size: int, *layers: nn.Module) -> list[tuple[int, ...]]:
    return [layer.output for layer in summarise_network(nn.Sequential(*layers).to("meta"), (size, size)).layers]


@pytest.mark.parametrize(
    ("n", "f", "p", "s", "cells"), [(6, 3, 0, 1, 4), (6, 3, 1, 1, 6), (6, 5, 2, 1, 6), (7, 3, 0, 2, 3), (6, 3, 0, 2, 2)]
)
def test_output_sizes_are_floored(n: int, f: int, p: int, s: int, cells: int) -> None:
    assert (n + 2 * p - f) // s + 1 == cells
    assert shape(n, nn.Conv2d(3, 2, f, s, p)) == [(cells, cells, 2)]


def test_a_small_network_of_convolutions() -> None:
    layers = nn.Conv2d(3, 10, 3), nn.Conv2d(10, 20, 5, 2), nn.Conv2d(20, 40, 5, 2), nn.Flatten()
    assert shape(39, *layers) == [(37, 37, 10), (17, 17, 20), (7, 7, 40), (1960,)]
    assert shape(7, nn.Conv2d(3, 1000, 1), nn.AvgPool2d(7)) == [(7, 7, 1000), (1, 1, 1000)]
    assert shape(28, nn.Conv2d(3, 192, 1), nn.Conv2d(192, 32, 1))[-1] == (28, 28, 32)


def test_a_1x1_convolution_is_a_fully_connected_layer_at_each_place() -> None:
    torch.manual_seed(0)
    conv, full, x = nn.Conv2d(32, 5, 1), nn.Linear(32, 5), torch.randn(1, 32, 6, 6)
    full.load_state_dict({"weight": conv.weight[:, :, 0, 0], "bias": conv.bias})
    torch.testing.assert_close(conv(x).permute(0, 2, 3, 1), full(x.permute(0, 2, 3, 1)))
