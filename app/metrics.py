"""What an operator watches: counts of responses, and Prometheus' text of them and of the engine.

Knows the engine's statistics and ASGI messages; knows nothing about routes or pictures.
"""

from __future__ import annotations

from collections import Counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from visual_ar.engine import EngineStats


class CountAnswers:
    """Counts responses by status.

    Args:
        app: what answers.
        answers: status -> responses so far, added to.
    """

    def __init__(self, app: ASGIApp, answers: Counter[int]) -> None:
        self._app, self._answers = app, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes everything on, as ASGI asks for."""

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._answers[message["status"]] += 1
            await send(message)

        try:
            await self._app(scope, receive, counting)
        except Exception:
            self._answers[500] += 1  # answered further out
            raise


def exposition(stats: EngineStats, answers: Counter[int]) -> str:
    """Metrics in Prometheus' text format 0.0.4.

    Args:
        stats: of the engine.
        answers: status -> responses.
    """
    outcomes = ("finished", "failed", "cancelled", "refused")
    pictures = {f'{{outcome="{name}"}}': getattr(stats, name) for name in outcomes}
    statuses: dict[str, float] = {
        f'{{status="{status}"}}': answers[status] for status in sorted(answers)
    }
    families: list[tuple[str, str, str, dict[str, float]]] = [
        ("slots", "gauge", "Pictures decoded at a time.", {"": stats.slots}),
        ("slots_busy", "gauge", "Slots that hold a picture.", {"": stats.busy}),
        ("pictures_waiting", "gauge", "Pictures that wait for a slot.", {"": stats.waiting}),
        ("pictures_total", "counter", "Pictures by outcome.", pictures),
        ("responses_total", "counter", "HTTP responses by status.", statuses),
        ("passes_total", "counter", "Passes of the model over all slots.", {"": stats.passes}),
        ("tokens_total", "counter", "Tokens of complete pictures.", {"": stats.tokens}),
        (
            "slot_seconds_total",
            "counter",
            "Seconds that complete pictures spent in a slot.",
            {"": stats.slot_seconds},
        ),
    ]
    lines = []
    for name, kind, meaning, samples in families:
        lines += [f"# HELP visual_ar_{name} {meaning}", f"# TYPE visual_ar_{name} {kind}"]
        lines += [f"visual_ar_{name}{labels} {value}" for labels, value in samples.items()]
    return "\n".join(lines) + "\n"
