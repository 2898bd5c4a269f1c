"""What a server measures, in the form of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server; two servers in one process count apart."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "blip3o_requests", "Requests by path and status.", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "blip3o_request_seconds",
            "Seconds to the end of an answer.",
            ("path",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.waiting = Gauge("blip3o_waiting_jobs", "Jobs that wait for the model.", registry=self.registry)
        self.rows = Histogram(
            "blip3o_batch_rows", "Rows that were computed together.", ("kind",), buckets=ROWS, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "blip3o_batch_seconds", "Seconds of a batch.", ("kind",), buckets=SECONDS, registry=self.registry
        )

    def answered(self, path: str, status: int, seconds: float) -> None:
        """An answer has ended."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def ran(self, kind: str, rows: int, seconds: float) -> None:
        """A batch was computed."""
        self.rows.labels(kind).observe(rows)
        self.batch_seconds.labels(kind).observe(seconds)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)


__all__ = ["Metrics"]
