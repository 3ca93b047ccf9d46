"""`bus.run()` with a handler that is at work when the signal comes."""

import threading

from mqkit import Bus, Queue

emails = Queue("emails", str)
bus = Bus("memory://")
stopping = threading.Event()


@bus.on(emails)
def handle(text: str) -> None:
    print("started", flush=True)
    while not any(worker._stopping for worker in bus.link.users):
        pass
    print("finished", flush=True)


bus.publish(emails, "x")
bus.run()
print("stopped", flush=True)
