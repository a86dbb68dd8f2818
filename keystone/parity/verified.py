"""Which bases are proven: the parity reports in an archive, and what they have to say to count."""

from collections.abc import Mapping

from csf_store import Archive, Digest, Kind
from manifests import CODE_ID, NotCanonicalError, ParityReport, Repository, parse_canonical

BARS: Mapping[str, tuple[str, float]] = {
    "float32": ("max-abs-delta", 5e-4),
    "bfloat16": ("relative-frobenius", 0.045),
}
"""dtype -> the metric it is judged by and the most it may be. For scale, in fp32: dropping the shift between loops
moves logits by more than 7, a window off by one by more than 1."""


def is_verified(archive: Archive, base: Digest) -> bool:
    """Whether a parity report shows that the present code computes this base as the vendor's does."""
    return any(counts(report) for _, report in reports_of(archive, base))


def counts(report: ParityReport) -> bool:
    """Whether a report proves its base: made with the present code, every case passed, no bar wider than ours."""
    ours = all(case.metric == BARS[case.dtype][0] and case.bar <= BARS[case.dtype][1] for case in report.cases)
    return report.code == CODE_ID and report.passed and ours


def reports_of(archive: Archive, base: Digest) -> list[tuple[Digest, ParityReport]]:
    """Every parity report on a base, by digest.

    Raises:
        manifests.InvalidDocumentError: a record says that it is one, and is not.
    """
    repository = Repository(archive)
    found = []
    for info in archive.objects(Kind.RECORD):
        if base not in info.links:
            continue
        try:
            value = parse_canonical(archive.get_bytes(info.digest, kind=Kind.RECORD))
        except NotCanonicalError:
            continue  # a record may be any document; one that is not ours says nothing about parity
        if value.get("kind") == ParityReport.kind_name():
            report = repository.load_record(info.digest, ParityReport)
            if report.base == base:
                found.append((info.digest, report))
    return found
