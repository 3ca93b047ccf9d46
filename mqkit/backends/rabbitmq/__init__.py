"""The RabbitMQ backend. Quorum queues, one topic exchange per topic, one ladder of waiting queues for every delay."""

pass

