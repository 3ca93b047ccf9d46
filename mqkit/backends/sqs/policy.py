"""The access policy of a group's queue: what lets its topic send there, beside what others have put into it; pure."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def permits(policy: str, queue_arn: str, topic_arn: str) -> bool:
    """Is our statement for this topic in it?"""
    return any(each == _statement(queue_arn, topic_arn) for each in _statements(_read(policy)))


def permitting(policy: str, queue_arn: str, topic_arn: str) -> str:
    """The policy with our statement added. Statements of others stay, in their order."""
    document = _read(policy)
    ours = _statement(queue_arn, topic_arn)
    others = [each for each in _statements(document) if each.get("Sid") != ours["Sid"]]
    return json.dumps({"Version": "2012-10-17", **document, "Statement": [*others, ours]})


def same(one: str, other: str) -> bool:
    """Two filter policies, whatever their spelling; none is empty."""
    return bool(_value(one) == _value(other))


def _statement(queue_arn: str, topic_arn: str) -> dict[str, Any]:
    return {
        "Sid": f"mqkit{hashlib.sha256(topic_arn.encode()).hexdigest()[:16]}",
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": queue_arn,
        "Condition": {"ArnEquals": {"aws:SourceArn": topic_arn}},
    }


def _read(policy: str) -> dict[str, Any]:
    document = _value(policy)
    return document if isinstance(document, dict) else {}


def _statements(document: dict[str, Any]) -> list[dict[str, Any]]:
    statements = document.get("Statement", [])
    return [statements] if isinstance(statements, dict) else list(statements)


def _value(text: str) -> Any:
    return json.loads(text) if text else None
