"""The order of samples without a shuffled list: a keyed permutation gives the clip of each sample of an epoch.

A Feistel network over the smallest square power of two that holds `size` numbers is a bijection whatever its round function
(Luby and Rackoff 1988); numbers that fall outside are sent through it again until they fall inside (cycle walking, Black and
Rogaway 2002), which keeps it a bijection. It takes a few microseconds and no memory for any number of samples, and every process
can compute the place of every sample.
"""

import hashlib
import random
from functools import lru_cache

# Seeds of what is never trained on: no training takes one of them.
EVALUATION_SEED = 777  # of the clips and scripts of evaluations
SAMPLE_SEED = 1_000_003  # of the stories in sample pictures; of footage and of stories painted once these are other cuts of training clips
HELD_OUT_SEED = 1_000_033  # of the clips that are validated on
RESERVED_SEEDS = (EVALUATION_SEED, SAMPLE_SEED, HELD_OUT_SEED)
NUM_ROUNDS = 6
MIX = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, as in splitmix64
WORD = (1 << 64) - 1


def place_of(seed: int, index: int, size: int) -> int:
    """Which of `size` clips sample `index` of a run shows: each one once an epoch, in an order that depends on (seed, epoch) alone."""
    epoch, position = divmod(index, size)
    return permuted(position, size, f"order {seed} {epoch}")


def permuted(position: int, size: int, key: str) -> int:
    """Position 0 .. size - 1 -> 0 .. size - 1, a bijection for each key."""
    if not 0 <= position < size:
        raise ValueError(f"position {position}: needed 0 .. {size - 1}")
    half_bits = max(((size - 1).bit_length() + 1) // 2, 1)
    keys = round_keys(key)
    while True:
        position = feistel(position, half_bits, keys)
        if position < size:
            return position


def is_image_step(seed: int, step: int, image_prob: float) -> bool:
    """Whether a step of joint training on pictures and videos takes a batch of pictures: the same in every process."""
    return random.Random(f"images {seed} {step}").random() < image_prob


@lru_cache(maxsize=64)
def round_keys(key: str) -> tuple[int, ...]:
    """A 64-bit number for each round."""
    digest = hashlib.shake_256(key.encode()).digest(8 * NUM_ROUNDS)
    return tuple(int.from_bytes(digest[8 * n : 8 * n + 8], "little") for n in range(NUM_ROUNDS))


def feistel(value: int, half_bits: int, keys: tuple[int, ...]) -> int:
    """A bijection of the numbers below 4 ** half_bits."""
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for key in keys:
        left, right = right, left ^ (scrambled(right, key) & mask)
    return left << half_bits | right


def scrambled(value: int, key: int) -> int:
    """The finisher of splitmix64: every bit of the answer depends on every bit of value and key."""
    word = (value * MIX + key) & WORD
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & WORD
    return word ^ word >> 31
