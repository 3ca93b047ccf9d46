"""A shop over messages: one topic of orders, three services, 6,919 real orders."""
