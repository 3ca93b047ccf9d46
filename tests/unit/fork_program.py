"""Forks with an open bus whose pump is stuck with a message, and reports what each side sees."""

import os
import sys

from mqkit import Bus, Queue
from mqkit.errors import Closed

emails = Queue("emails", str)
bus = Bus("memory://")
bus.publish(emails, "before")
lock = bus.link.backend._broker.lock
lock.acquire()
future = bus.publish_soon(emails, "in flight")

child = os.fork()
if child == 0:
    try:
        future.result(5)
    except Closed:
        print("child:Closed", flush=True)
    bus.publish(emails, "from the child")
    with bus.subscription(emails) as messages:
        [delivery] = messages.receive(timeout=5)
        print("child:ok" if delivery.payload == "from the child" else delivery.payload, flush=True)
        delivery.ack()
    os._exit(0)

os.waitpid(child, 0)
lock.release()
future.result(5)
with bus.subscription(emails) as messages:
    payloads = []
    while len(payloads) < 2:
        for delivery in messages.receive(timeout=5):
            payloads.append(delivery.payload)
            delivery.ack()
print("parent:ok" if payloads == ["before", "in flight"] else payloads, flush=True)
bus.close()
sys.exit(0)
