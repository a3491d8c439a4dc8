"""The order of samples: a bijection for every number of clips, the same in every process."""

import random
from itertools import pairwise

import pytest

from phenaki.data.order import is_image_step, permuted, place_of


@pytest.mark.parametrize("size", [*range(1, 70), 255, 256, 257, 1000, 4095, 4097])
def test_every_position_once(size):
    assert sorted(permuted(position, size, f"key {size}") for position in range(size)) == list(range(size))


def test_a_thousand_million_clips_need_no_list():
    size = 10**9 + 7
    places = [place_of(3, index, size) for index in range(2000)]
    assert len(set(places)) == 2000 and all(0 <= place < size for place in places)
    assert sum(place < size // 2 for place in places) in range(850, 1150)  # a binomial's six sigma around 1000 is 134


def test_the_order_looks_shuffled():
    """Of 5000 clips about one stays where it was, and about one is followed by the next one, as in a random order."""
    places = [place_of(0, index, 5000) for index in range(5000)]
    assert sum(place == index for index, place in enumerate(places)) < 10
    assert sum(after == before + 1 for before, after in pairwise(places)) < 10


@pytest.mark.parametrize("size", [1, 5, 64, 211])
def test_each_clip_once_an_epoch_for_any_number_of_processes(size):
    whole = [place_of(7, index, size) for index in range(3 * size)]
    epochs = [whole[n * size : (n + 1) * size] for n in range(3)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert size < 5 or len(set(map(tuple, epochs))) == 3
    draw = random.Random(size)
    for _ in range(20):
        processes, batch = draw.randrange(1, 9), draw.randrange(1, 7)
        steps = range(-(-len(whole) // (processes * batch)))
        starts = [(step * processes + rank) * batch for step in steps for rank in range(processes)]
        seen = [place_of(7, index, size) for start in starts for index in range(start, start + batch)]
        assert seen[: len(whole)] == whole


def test_orders_of_other_seeds_differ():
    orders = {tuple(place_of(seed, index, 12) for index in range(12)) for seed in range(50)}
    assert len(orders) == 50


def test_a_position_outside_is_refused():
    with pytest.raises(ValueError, match=r"position 4: needed 0 \.\. 3"):
        permuted(4, 4, "key")


def test_image_steps_come_as_often_as_asked():
    steps = [is_image_step(1, step, 0.25) for step in range(4000)]
    assert abs(sum(steps) - 1000) < 170  # six sigma
    assert steps != [is_image_step(2, step, 0.25) for step in range(4000)]
    assert not any(is_image_step(1, step, 0.0) for step in range(100)) and all(is_image_step(1, step, 1.0) for step in range(100))
