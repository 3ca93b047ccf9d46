"""Redis as a message broker; used through `RedisBackend`."""

from mqkit.backends.redis.backend import RedisBackend

__all__ = ["RedisBackend"]
