import threading

import pytest

from lltoolkit.zoo.writer import IN_FLIGHT, Writer


def test_works_are_done_in_their_order_and_few_wait():
    done, unfinished = [], []
    writer = Writer()
    for number in range(50):
        writer.make_room()
        unfinished.append(number - len(done))
        writer.submit(lambda number=number: done.append(number))
    writer.close()
    assert done == list(range(50))
    assert max(unfinished) < IN_FLIGHT


def test_room_is_there_only_when_a_work_has_ended():
    go, has_room = threading.Event(), threading.Event()
    writer = Writer()
    for _ in range(IN_FLIGHT):
        writer.submit(go.wait)
    asking = threading.Thread(target=lambda: (writer.make_room(), has_room.set()))
    asking.start()
    assert not has_room.wait(0.1)
    go.set()
    assert has_room.wait(10)
    asking.join()
    writer.close()


def test_an_error_is_raised_once_by_the_next_check_and_what_waits_is_done():
    go, done = threading.Event(), []

    def fail():
        go.wait()
        raise OSError("no room")

    writer = Writer()
    writer.submit(fail)
    writer.submit(lambda: done.append(1))
    go.set()
    writer.make_room()  # the work that is handed in next is no worse for the error of another
    writer.submit(lambda: done.append(3))
    with pytest.raises(OSError, match="no room"):
        writer.wait()
    assert done == [1, 3]
    writer.check()
    writer.submit(lambda: done.append(2))
    writer.close()
    assert done == [1, 3, 2]
