"""Audits that a person starts from the page: one at a time, in a thread of their own, told line by line.

An audit hashes everything again, which may take minutes; a second press of the button joins the one that runs rather
than starting another, so no client can keep the machine busy with more than one.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from adapters import fit_problem
from csf_store import Archive, CsfError
from keystone.tied_weights import TIED
from manifests import Auditor, AuditorState, AuditReport, JsonObject, ManifestError

_KEPT = 16


@dataclass
class AuditJob:
    """One audit.

    Attributes:
        key: what the page asks for it by.
        target: a ref or a manifest's digest.
        phase: what it does now.
        report: what it found, when it is done.
        problem: why it could not be made.
        planned: about how many bytes it will hash; 0 where that is not known.
        hashed: how many it has.
        started: monotonic seconds; `ended` likewise, None while it runs.
    """

    key: str
    target: str
    phase: str = "reading the ledger, line by line"
    report: AuditReport | None = None
    problem: str | None = None
    planned: int = 0
    hashed: int = 0
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None

    def to_json(self) -> JsonObject:
        """What the page shows of it."""
        lines = self.report.lines if self.report else ()
        return {
            "key": self.key,
            "target": self.target,
            "running": self.ended is None,
            "phase": self.phase,
            "planned": self.planned,
            "hashed": self.hashed,
            "seconds": round((self.ended or time.monotonic()) - self.started, 2),
            "verdict": self.report.verdict.value if self.report else None,
            "manifest": str(self.report.manifest) if self.report and self.report.manifest else None,
            "problem": self.problem,
            "lines": [line.to_json() for line in lines],
        }


class Audits:
    """The audits of one server.

    Args:
        archive: what is audited.
        memory: where this auditor remembers earlier audits; without it every audit starts from nothing.
    """

    def __init__(self, archive: Archive, memory: Path | None) -> None:
        self._archive = archive
        self._memory = memory
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, AuditJob] = OrderedDict()

    def start(self, target: str) -> AuditJob:
        """Begin an audit, or return the one that runs, whatever its target."""
        with self._lock:
            for job in self._jobs.values():
                if job.ended is None:
                    return job
            job = AuditJob(secrets.token_hex(8), target)
            self._jobs[job.key] = job
            while len(self._jobs) > _KEPT:
                self._jobs.popitem(last=False)
        threading.Thread(target=self._run, args=(job,), name="keystone-audit", daemon=True).start()
        return job

    def find(self, key: str) -> AuditJob | None:
        """An audit by its key, if it is still remembered."""
        with self._lock:
            return self._jobs.get(key)

    def _run(self, job: AuditJob) -> None:
        try:
            # A handle of its own: an audit must not wait for what the server does with the archive, nor hold it up.
            with Archive.open(self._archive.path) as archive:
                state = AuditorState(self._memory) if self._memory is not None else None

                def hashed(count: int) -> None:
                    job.hashed += count

                quick = state is not None
                auditor = Auditor(archive, fit=fit_problem, tied=TIED, state=state, quick=quick, progress=hashed)
                job.planned = auditor.planned_bytes(job.target)
                job.phase = "re-hashing what the manifest stands on"
                job.report = auditor.audit_target(job.target)
        except (CsfError, ManifestError) as error:
            job.problem = str(error)
        except Exception as error:  # noqa: BLE001 - a thread's last words would be lost, and the page wait for ever
            job.problem = f"the audit broke off: {type(error).__name__}: {error}"
        finally:
            job.phase = "done"
            job.ended = time.monotonic()
