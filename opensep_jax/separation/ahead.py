"""Read-ahead: what an iterator yields, made in a thread of its own."""

import contextlib
import queue
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def ahead(items: Iterator, most: int) -> Iterator[Iterator]:
    """Has another thread make items before they are asked for.

    Args:
        items: a generator; it is closed in that thread.
        most: of items that wait.

    Yields:
        The items, in a context that ends the thread. What making them raises is raised here.
    """
    made: queue.Queue = queue.Queue(most)
    stop, end = threading.Event(), object()

    def put(item: object, error: BaseException | None = None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                made.put((item, error), timeout=0.1)
                return

    def make() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    break
            put(end)
        except BaseException as error:
            put(end, error)
        finally:
            items.close()

    def take() -> Iterator:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item

    thread = threading.Thread(target=make, name="reader", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        stop.set()
        thread.join()
