"""What the server counts, for Prometheus."""

from xgenvideo.errors import MissingExtra

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server; raises MissingExtra without prometheus-client."""

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError as error:
            raise MissingExtra("prometheus-client", "serve") from error
        self._registry = of = CollectorRegistry()
        self.requests = Counter(
            "xgv_requests", "Requests answered, by endpoint and status", ["endpoint", "status"], registry=of
        )
        self.seconds = Histogram(
            "xgv_request_seconds",
            "From a request's first byte to its answer's last",
            ["endpoint"],
            buckets=SECONDS,
            registry=of,
        )
        self.in_house = Gauge(
            "xgv_queue_depth", "Requests in the house: being read, decoded, written or waiting", registry=of
        )
        self.waiting = Gauge("xgv_texts_waiting", "Texts that wait for their batch", registry=of)
        self.batch = Histogram("xgv_batch_texts", "Texts written together", buckets=SIZES, registry=of)
        self.tokens = Counter("xgv_tokens", "Tokens read from prompts and written", ["kind"], registry=of)
        self.video_seconds = Counter("xgv_video_seconds", "Seconds of video watched", registry=of)
        self.decode_failures = Counter(
            "xgv_decode_failures", "Videos that could not be used, by reason", ["reason"], registry=of
        )

    @property
    def text(self) -> bytes:
        """All of them as Prometheus reads them."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)
