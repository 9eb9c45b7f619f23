"""Figures for Prometheus, in a registry of each server's own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE", "Figures"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Figures:
    """Counters, gauges and histograms of one server.

    Attributes:
        requests: by tenant ("-" before a key is known), route and status.
        pictures: handed out, by tenant and policy.
        refusals: by code.
        opened: pictures in which a membrane acted, by concept.
        waiting: rows in the queue.
        batch_rows: rows of a denoiser call.
        call_seconds: of a denoiser call.
        request_seconds: from request to answer.
        lost: replicas lost while they drew.
        replicas: that can draw; 1 where the server's own process draws.
        calls: denoiser calls, by the rank of the replica ("-" is this process).
        state: number of the state in force.
        problems: of the state in force.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("spm_requests", "Answers", ("tenant", "route", "status"), registry=registry)
        self.pictures = Counter("spm_pictures", "Pictures handed out", ("tenant", "policy"), registry=registry)
        self.refusals = Counter("spm_refusals", "Refused requests", ("code",), registry=registry)
        self.opened = Counter("spm_membrane_opened", "Pictures a membrane acted on", ("concept",), registry=registry)
        self.waiting = Gauge("spm_rows_waiting", "Pictures waiting", registry=registry)
        self.batch_rows = Histogram("spm_batch_rows", "Pictures in one call", buckets=_ROWS, registry=registry)
        self.call_seconds = Histogram("spm_call_seconds", "Seconds of one call", buckets=_SECONDS, registry=registry)
        self.request_seconds = Histogram("spm_request_seconds", "Seconds", buckets=_SECONDS, registry=registry)
        self.calls = Counter("spm_calls", "Denoiser calls", ("replica",), registry=registry)
        self.replicas = Gauge("spm_replicas", "Replicas that can draw", registry=registry)
        self.lost = Counter("spm_replicas_lost", "Replicas lost while they drew", registry=registry)
        self.state = Gauge("spm_state", "Number of the state in force", registry=registry)
        self.problems = Gauge("spm_problems", "Problems of the state in force", registry=registry)

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self._registry)
