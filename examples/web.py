"""An ASGI application that publishes: the bus opens and closes with the application's lifespan. Needs no framework."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from examples.contracts import OrderPlaced, orders
from mqkit import Bus

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

bus = Bus()


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    """A wrong URL or a broker that is away fails here, when the application starts."""
    async with bus.aio:
        yield


async def place(order: OrderPlaced) -> str:
    """The message id, once the broker is responsible for the order."""
    return await bus.aio.publish(orders, order)


async def app(scope: Event, receive: Receive, send: Send) -> None:
    """`uvicorn examples.web:app`, with MQKIT_URL set."""
    if scope["type"] == "lifespan":
        await receive()
        async with lifespan():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    body, more = b"", True
    while more:
        part = await receive()
        body, more = body + part.get("body", b""), part.get("more_body", False)
    id = await place(OrderPlaced(**json.loads(body)))
    await send({"type": "http.response.start", "status": 202, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": id.encode()})
