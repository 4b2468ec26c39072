"""What Prometheus reads from /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

TIMES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "softvq_requests_total", "Requests by route and status.", ["route", "status"],
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "softvq_request_seconds", "From the first byte to the last.", ["route"],
            registry=registry, buckets=TIMES,
        )  # fmt: skip
        self.batches = Histogram(
            "softvq_batch_items", "Requests computed together.", ["work"], registry=registry,
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )  # fmt: skip
        self.waits = Histogram(
            "softvq_wait_seconds", "In the queue, of the first of each batch.", registry=registry,
            buckets=TIMES,
        )  # fmt: skip
        self.stage = Gauge("softvq_rollout_stage", "0 shadow, 1 canary, 2 full.", registry=registry)
        self.drift = Gauge(
            "softvq_drift", "Latest window's figure, divided by its threshold.", ["figure"],
            registry=registry,
        )  # fmt: skip
        self.alarms = Counter(
            "softvq_drift_alarms_total", "Windows above a threshold.", registry=registry
        )
        self.unseen = Counter(
            "softvq_unseen_total", "Photos left out of the record.", registry=registry
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)
