from random import Random

import numpy as np
import pytest

from rtp_serve.routing.predictor import PrefillPredictor
from rtp_serve.routing.types import PrefillPoint


def true_s(new: int, context: int, slowness: float = 1.0) -> float:
    return slowness * (0.02 + new / 9000 + 1e-9 * new * (context + new / 2))


def point(rng: Random, slowness: float = 1.0) -> PrefillPoint:
    new, context = int(2 ** rng.uniform(4, 15)), int(2 ** rng.uniform(0, 15))
    took = true_s(new, context, slowness) * rng.uniform(0.95, 1.05)
    return PrefillPoint(new, context, took)


def error(predictor: PrefillPredictor, slot: int, slowness: float = 1.0) -> float:
    """The largest relative one over a grid."""
    return max(
        abs(predictor.predict_one(slot, new, context) / true_s(new, context, slowness) - 1)
        for new in (64, 1024, 16384)
        for context in (0, 4096, 32768)
    )


def test_a_self_benchmark_is_a_start():
    predictor = PrefillPredictor(1)
    points = [(64, 0), (1024, 0), (8192, 0), (1024, 8192)]
    predictor.start(0, [PrefillPoint(new, ctx, true_s(new, ctx)) for new, ctx in points])
    assert error(predictor, 0) < 0.01


def test_it_learns_from_what_was_done():
    rng, predictor = Random(1), PrefillPredictor(1)
    predictor.start(0)
    assert error(predictor, 0) > 0.5
    for _ in range(100):
        predictor.learn(0, point(rng))
    assert error(predictor, 0) < 0.06


def test_it_follows_a_worker_that_becomes_slower():
    rng, predictor = Random(2), PrefillPredictor(1)
    predictor.start(0)
    for slowness, num_samples in ((1.0, 300), (1.5, 600)):
        for _ in range(num_samples):
            predictor.learn(0, point(rng, slowness))
    assert error(predictor, 0, 1.5) < 0.1


def test_a_stall_moves_it_little():
    rng, predictor = Random(3), PrefillPredictor(1)
    predictor.start(0)
    for _ in range(300):
        predictor.learn(0, point(rng))
    predictor.learn(0, PrefillPoint(1024, 0, 60.0))
    assert error(predictor, 0) < 0.15


def test_a_worker_without_a_benchmark_begins_as_the_others_are():
    rng, predictor = Random(4), PrefillPredictor(2)
    predictor.start(0)
    for _ in range(300):
        predictor.learn(0, point(rng))
    predictor.start(1)
    assert predictor.predict_one(1, 1000, 0) == pytest.approx(true_s(1000, 0), rel=0.05)


def test_the_same_prompt_again_and_again_does_not_make_it_wild():
    """Forgetting without new information inflates the covariance; then one sample ruins it."""
    rng, predictor = Random(5), PrefillPredictor(1)
    predictor.start(0)
    for _ in range(300):
        predictor.learn(0, point(rng))
    for _ in range(5000):
        predictor.learn(0, PrefillPoint(340, 0, true_s(340, 0) * rng.uniform(0.9, 1.1)))
    predictor.learn(0, PrefillPoint(4000, 0, true_s(4000, 0) * 1.1))
    assert predictor.predict_one(0, 340, 0) == pytest.approx(true_s(340, 0), rel=0.1)
    assert predictor.predict_one(0, 8000, 0) == pytest.approx(true_s(8000, 0), rel=0.5)


def test_all_workers_are_predicted_at_once_and_never_below_zero():
    predictor = PrefillPredictor(2)
    predictor.start(0, [PrefillPoint(1000, 0, 0.1), PrefillPoint(2000, 0, 0.25)])
    predictor.start(1, [PrefillPoint(1000, 0, 0.2)])
    new, context = np.array([1, 500]), np.array([0, 100])
    predicted = predictor.predict(np.array([0, 1]), new, context)
    assert (predicted >= 0).all()
    singles = [predictor.predict_one(0, 1, 0), predictor.predict_one(1, 500, 100)]
    assert predicted.tolist() == pytest.approx(singles)


def test_what_was_learned_can_be_carried_over():
    rng, predictor = Random(6), PrefillPredictor(1)
    predictor.start(0)
    for _ in range(100):
        predictor.learn(0, point(rng))
    other = PrefillPredictor(1)
    other.restore(0, predictor.coefficients(0))
    assert other.predict_one(0, 777, 55) == predictor.predict_one(0, 777, 55)
