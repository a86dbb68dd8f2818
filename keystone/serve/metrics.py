"""`/metrics`, in the text format that Prometheus reads."""

from collections import Counter

from keystone.serve.host import Host

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counts of HTTP requests; what engines count is read when it is asked for."""

    def __init__(self) -> None:
        self._answers: Counter[tuple[str, int]] = Counter()
        self._buckets = [0] * len(_BUCKETS)
        self._seconds = 0.0

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a response, from its arrival to its last byte."""
        self._answers[path, status] += 1
        self._seconds += seconds
        for number, bound in enumerate(_BUCKETS):
            self._buckets[number] += seconds <= bound

    def text(self, host: Host) -> str:
        """Everything, one sample a line."""
        lines = ["# TYPE keystone_http_requests_total counter"]
        for (path, status), count in sorted(self._answers.items()):
            lines.append(f'keystone_http_requests_total{{path="{path}",status="{status}"}} {count}')
        lines.append("# TYPE keystone_http_request_seconds histogram")
        for bound, count in zip(_BUCKETS, self._buckets, strict=True):
            lines.append(f'keystone_http_request_seconds_bucket{{le="{bound}"}} {count}')
        total = self._answers.total()
        lines.append(f'keystone_http_request_seconds_bucket{{le="+Inf"}} {total}')
        lines += [
            f"keystone_http_request_seconds_sum {self._seconds:.6f}",
            f"keystone_http_request_seconds_count {total}",
        ]
        lines += self._engines(host)
        lines.append("# TYPE keystone_ref_problems gauge")
        lines.append(f"keystone_ref_problems {len(host.problems())}")
        return "\n".join(lines) + "\n"

    @staticmethod
    def _engines(host: Host) -> list[str]:
        bases = [(base, base.engine, base.engine.counters) for base in host.bases()]
        tables: list[tuple[str, str, list[float]]] = [
            ("prompt_tokens_total", "counter", [c.prompt_tokens for _, _, c in bases]),
            ("reused_prompt_tokens_total", "counter", [c.reused_tokens for _, _, c in bases]),
            ("generated_tokens_total", "counter", [c.generated_tokens for _, _, c in bases]),
            ("generations_total", "counter", [c.requests for _, _, c in bases]),
            ("generations_refused_total", "counter", [c.refused for _, _, c in bases]),
            ("generations_failed_total", "counter", [c.failed for _, _, c in bases]),
            ("generations_cancelled_total", "counter", [c.cancelled for _, _, c in bases]),
            ("generations_recovered_total", "counter", [c.recovered for _, _, c in bases]),
            ("decode_steps_total", "counter", [c.steps for _, _, c in bases]),
            ("decode_seconds_total", "counter", [round(c.step_seconds, 6) for _, _, c in bases]),
            ("waiting", "gauge", [e.waiting for _, e, _ in bases]),
            ("running", "gauge", [e.running for _, e, _ in bases]),
            ("cache_bytes", "gauge", [e.held_bytes for _, e, _ in bases]),
        ]
        lines = []
        for name, kind, values in tables:
            lines.append(f"# TYPE keystone_{name} {kind}")
            for (base, _, _), value in zip(bases, values, strict=True):
                label = f'base="{base.checkpoint.digest}",recipe="{base.recipe.digest}"'
                lines.append(f"keystone_{name}{{{label}}} {value}")
        return lines
