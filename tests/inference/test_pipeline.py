import threading
import time

import pytest

from nnunetv2_kd.inference.pipeline import Background, Prefetched


@pytest.mark.parametrize("workers", [0, 1, 3, 20])
def test_in_order_with_exceptions_in_place(workers):
    def half(item):
        time.sleep(0.002 * (item % 3))
        if item == 4:
            raise ValueError("four")
        return item / 2

    found = list(Prefetched(half, range(9), workers))
    assert [item for item, _ in found] == list(range(9))
    assert [result for item, result in found if item != 4] == [item / 2 for item in range(9) if item != 4]
    assert str(found[4][1]) == "four"


def test_not_all_at_once():
    begun = []
    iterator = iter(Prefetched(begun.append, range(50), 2))
    next(iterator)
    time.sleep(0.05)
    assert len(begun) <= 5


@pytest.mark.parametrize("workers", [0, 2])
def test_failures_by_name(workers):
    done = []
    background = Background(workers)

    def work(number):
        if number == 3:
            raise OSError("disk full")
        done.append(number)

    for number in range(8):
        background(str(number), lambda number=number: work(number))
    background.finish()
    assert sorted(done) == [0, 1, 2, 4, 5, 6, 7]
    assert list(background.failed) == ["3"]


def test_waits_where_too_much_is_unfinished():
    go = threading.Event()
    background = Background(1)
    for number in range(2):
        background(str(number), go.wait)
    third = threading.Thread(target=lambda: background("2", lambda: None))
    third.start()
    third.join(0.05)
    assert third.is_alive()
    go.set()
    third.join(5)
    background.finish()
    assert not third.is_alive()
