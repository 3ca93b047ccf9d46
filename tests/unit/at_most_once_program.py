"""Two handlers at once that begin and never end, at most once; for a test that kills this process."""

import sys
import threading

from mqkit import Bus, Queue

numbers = Queue("numbers", int)
bus = Bus(sys.argv[1])


@bus.on(numbers, promise="at_most_once", concurrency=2)
def handle(number: int) -> None:
    print(number, flush=True)
    threading.Event().wait()


bus.run()
