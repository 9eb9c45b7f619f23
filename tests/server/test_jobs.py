"""The queue: limits, fairness, deadlines, cancellation."""

import threading
import time

import pytest

from semipermeable.errors import RefusedError
from semipermeable.server.jobs import CallShape, FairQueue, Job

SHAPE = CallShape(2, 4.0, 64, 64)


def job(tenant="a", shape=SHAPE, seconds=60.0, seed=0):
    return Job(tenant, "p", "", seed, (), shape, time.monotonic() + seconds)


def tenants(batch):
    return [one.tenant for one in batch]


def test_rows_of_all_tenants_take_turns():
    queue = FairQueue(100, 100)
    queue.put([job("a") for _ in range(6)])
    queue.put([job("b") for _ in range(2)])
    queue.put([job("c")])
    assert tenants(queue.take(4, 0)) == ["a", "b", "c", "a"]
    assert tenants(queue.take(4, 0)) == ["b", "a", "a", "a"]
    assert tenants(queue.take(4, 0)) == ["a"]
    assert queue.take(4, 0) == []


def test_with_batches_of_one_a_flood_delays_another_tenant_by_one_row():
    queue = FairQueue(100, 100)
    queue.put([job("flood") for _ in range(50)])
    queue.put([job("other") for _ in range(3)])
    order = [queue.take(1, 0)[0].tenant for _ in range(6)]
    assert order == ["flood", "other", "flood", "other", "flood", "other"]


def test_rows_of_one_tenant_keep_their_order():
    queue = FairQueue(100, 100)
    queue.put([job(seed=seed) for seed in range(5)])
    assert [one.seed for one in queue.take(3, 0) + queue.take(3, 0)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("field", [{"steps": 3}, {"guidance": 1.0}, {"width": 128}, {"height": 128}])
def test_another_shape_is_another_batch(field):
    from dataclasses import replace

    other = replace(SHAPE, **field)
    queue = FairQueue(100, 100)
    queue.put([job("a"), job("a", other), job("a")])
    queue.put([job("b", other)])
    assert [one.shape for one in queue.take(9, 0)] == [SHAPE, SHAPE]
    assert tenants(queue.take(9, 0)) == ["b", "a"]


def test_no_shape_starves():
    queue = FairQueue(1000, 1000)
    other = CallShape(3, 4.0, 64, 64)
    queue.put([job("rare", other)])
    for round_number in range(3):
        queue.put([job("busy") for _ in range(4)])
        if "rare" in tenants(queue.take(4, 0)):
            assert round_number <= 1
            return
    pytest.fail("the rare row was never taken")


def test_a_request_is_queued_whole_or_not_at_all_and_is_told_when_to_come_back():
    queue = FairQueue(4, 3)
    queue.put([job("a"), job("a")])
    with pytest.raises(RefusedError, match="you have too many pictures waiting") as caught:
        queue.put([job("a"), job("a")])
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (429, "queue_full", 1)
    assert len(queue) == 2
    queue.measured(2, 20.0)
    with pytest.raises(RefusedError, match="the server has too many pictures waiting; try again in 20") as caught:
        queue.put([job("b"), job("b"), job("b")])
    assert caught.value.retry_after == 20
    queue.put([job("b"), job("b")])


def test_a_cancelled_row_is_not_drawn_and_makes_room():
    queue = FairQueue(2, 2)
    first, second = job(), job()
    queue.put([first, second])
    first.abandon()
    queue.put([job()])
    taken = queue.take(9, 0)
    assert first not in taken
    assert len(taken) == 2


def test_a_row_that_is_too_late_is_refused():
    queue = FairQueue(9, 9)
    late = job(seconds=-1)
    queue.put([late, job()])
    assert len(queue.take(9, 0)) == 1
    with pytest.raises(RefusedError, match="not finished in time") as caught:
        late.future.result(0)
    assert (caught.value.status, caught.value.code) == (504, "deadline_exceeded")


def test_cancelling_and_refusing_at_the_same_time_is_no_error():
    for _ in range(200):
        one = job()
        thread = threading.Thread(target=one.abandon)
        thread.start()
        one.refuse(RefusedError("x", status=503, code="x"))
        thread.join()
        assert one.future.done()


def test_a_waiting_worker_wakes_up_at_once():
    queue = FairQueue(9, 9)
    found = []
    thread = threading.Thread(target=lambda: found.extend(queue.take(9, 30)))
    thread.start()
    queue.put([job()])
    thread.join(5)
    assert len(found) == 1


def test_a_closed_queue_takes_nothing_new_and_gives_out_what_waits():
    queue = FairQueue(9, 9)
    queue.put([job()])
    queue.close()
    with pytest.raises(RefusedError, match="stopping"):
        queue.put([job()])
    assert len(queue.take(9, 0)) == 1


def test_many_threads_lose_and_double_nothing():
    queue = FairQueue(10_000, 10_000)
    taken, lock = [], threading.Lock()

    def put(tenant):
        for seed in range(100):
            queue.put([job(tenant, seed=seed)])

    def take():
        while len(taken) < 800:
            batch = queue.take(7, 0.01)
            with lock:
                taken.extend(batch)

    threads = [threading.Thread(target=put, args=(f"t{number}",)) for number in range(8)]
    threads += [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted((one.tenant, one.seed) for one in taken) == sorted((f"t{n}", s) for n in range(8) for s in range(100))
