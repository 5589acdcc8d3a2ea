"""A collector gives its weight when all of it is there, and notices what comes twice."""

import pytest
import torch
from torch import Tensor

from rtp_serve import ops
from rtp_serve.loader.collector import Collector, Place
from rtp_serve.models.weights import matrix, vector

BF16 = torch.bfloat16
ROWS = {"q": 5, "k": 3}


def random(*shape: int) -> Tensor:
    return torch.randn(shape)


def places_of(collector: Collector) -> dict[str, Place]:
    return dict(collector.places())


def test_parts_in_any_order_become_one_weight():
    collector = Collector(matrix("qk", ROWS, 7, has_bias=True), BF16, None)
    tensors = {f"{part}.weight": random(size, 7) for part, size in ROWS.items()}
    tensors |= {f"{part}.bias": random(size) for part, size in ROWS.items()}
    places = places_of(collector)
    for name in ("k.bias", "q.weight", "k.weight", "q.bias"):
        assert not collector.is_complete
        for row in reversed(range(len(tensors[name]))):
            places[name].put(row, tensors[name][row : row + 1])
    weight = torch.cat([tensors["q.weight"], tensors["k.weight"]]).to(BF16)
    bias = torch.cat([tensors["q.bias"], tensors["k.bias"]]).to(BF16)
    expected = ops.pack_weight(weight, bias)
    assert torch.equal(collector.matrix().data, expected.data)
    assert torch.equal(collector.matrix().bias, bias.float())


def test_a_weight_that_is_not_all_there_is_not_given():
    collector = Collector(vector("norm", "n", 4), BF16, None)
    places_of(collector)["n.weight"].put(0, random(3))
    with pytest.raises(AssertionError, match="norm: 1 elements are missing"):
        collector.vector()
    places_of(collector)["n.weight"].put(3, random(1))
    assert collector.vector().shape == (4,)


def test_what_comes_twice_is_noticed():
    collector = Collector(vector("norm", "n", 4), BF16, None)
    place = places_of(collector)["n.weight"]
    place.put(0, random(4))
    with pytest.raises(AssertionError, match="norm: more arrived than belongs to it"):
        place.put(1, random(1))
