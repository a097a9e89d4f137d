import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from teachers import parallel
from teachers.parallel import TOGETHER


@pytest.mark.parametrize("threads", [1, 3])
def test_answers_come_in_the_order_of_the_batches(threads: int) -> None:
    batches = [np.arange(first, first + 10) for first in range(0, 100, 10)]
    answers = list(parallel.answers(lambda part: part * 2, batches, threads))
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_array_equal(answer, batch * 2)


def test_parts_of_a_batch_run_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=20)

    def ask(part: np.ndarray) -> np.ndarray:
        together.wait()  # which fails unless three parts run at once
        return part

    [answer] = parallel.answers(ask, [np.arange(3 * TOGETHER)], threads=3)
    np.testing.assert_array_equal(answer, np.arange(3 * TOGETHER))


def test_few_batches_are_made_before_they_are_needed() -> None:
    made = 0

    def batches() -> Iterator[np.ndarray]:
        nonlocal made
        while made < 99:
            made += 1
            yield np.zeros(8 * TOGETHER)

    answers = parallel.answers(lambda part: part, batches(), threads=2)
    next(answers)
    assert made <= 3


def test_an_error_of_a_thread_reaches_the_caller() -> None:
    def fail(_part: np.ndarray) -> np.ndarray:
        raise ValueError("broken")

    for threads in (1, 2):
        with pytest.raises(ValueError, match="broken"):
            list(parallel.answers(fail, [np.zeros(3)], threads))


def test_after_an_error_no_further_part_is_asked() -> None:
    asked: list[int] = []

    def fail(part: np.ndarray) -> np.ndarray:
        asked.append(len(part))
        time.sleep(0.1)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(parallel.answers(fail, [np.zeros(40 * TOGETHER)], threads=2))
    assert len(asked) < 10


def test_of_a_small_batch_every_thread_gets_a_part() -> None:
    asked: list[int] = []
    [_] = parallel.answers(lambda part: asked.append(len(part)) or part, [np.zeros(10)], threads=8)
    assert asked == [2, 2, 2, 2, 2]
