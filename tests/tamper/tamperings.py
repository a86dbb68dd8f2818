"""Every way of tampering that an audit must see, each by name, each with as many variants as a seed has draws.

A mutation is given a copy of the victim and a random generator. Those on bytes and ledger lines edit files. Those on
documents go as far as an attacker with full write access would: they write objects around the repository's rules, tell
the ledger what suits them, and move a ref to the forgery. None of them has an operator's private key or can reach the
auditor's own state.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import rfc8785
from manifest_house import POLICY, SUITE, House, put_tree, signer
from victim import (
    GUARD,
    ITEMS,
    Victim,
    adapter_record,
    adapter_tree,
    attestation,
    base_tree,
    guarded,
    merges,
    sign,
    trained,
    training_record,
)

from adapters import Confidence, Evidence, GuardReport, RecordSource, Secret, tripwire_policy
from adapters.holdouts import commitment
from csf_store import JSON, Archive, Digest, Kind
from manifests import (
    AdapterRecord,
    AdapterUse,
    Assembly,
    Document,
    Envelope,
    EvalReport,
    EvalSummary,
    LineageStep,
    Manifest,
    Recipe,
    Repository,
    TrainingRecord,
    Tripwire,
    TripwireMeasure,
    TripwirePolicy,
    TripwireReport,
    approval_statement,
    draft_approval,
    manifest_statement,
    put_envelope,
    seal,
)

NF4 = Recipe(dtype="bfloat16", quantization="nf4", modules=("m",), double_quant=True, compute_dtype="bfloat16")


@dataclass
class Scene:
    """One copy of the victim, to be tampered with."""

    path: Path
    victim: Victim
    rng: random.Random

    def house(self, archive: Archive) -> House:
        return House(Repository(archive), self.victim.base, self.victim.tokenizer)

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    def forget_caches(self) -> None:
        for path in [*self.path.glob("ledger.sqlite*"), *self.path.glob("index.sqlite*")]:
            path.unlink()


Mutation = Callable[[Scene], None]
MUTATIONS: dict[str, Mutation] = {}


def mutation(function: Mutation) -> Mutation:
    MUTATIONS[function.__name__.replace("_", "-")] = function
    return function


# -- bytes -----------------------------------------------------------------------------------------------------------


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@mutation
def a_byte_of_a_segment(scene: Scene) -> None:
    flip(scene.rng.choice(sorted((scene.path / "segments").iterdir())), scene.rng)


@mutation
def a_byte_of_a_segment_and_no_caches(scene: Scene) -> None:
    scene.forget_caches()
    a_byte_of_a_segment(scene)


@mutation
def a_byte_of_a_stored_object(scene: Scene) -> None:
    """Inside the payload of a manifest, a report, a record, an envelope or a weight, wherever it is stored plainly."""
    with Archive.open(scene.path) as archive:
        digests = [info.digest for info in archive.objects()]
        contents = [archive.get_bytes(digest) for digest in digests]
    (segment,) = (scene.path / "segments").iterdir()
    data = bytearray(segment.read_bytes())
    plain = [content for content in contents if content and data.find(content) >= 0]
    content = scene.rng.choice(plain)
    data[data.find(content) + scene.rng.randrange(len(content))] ^= 1 << scene.rng.randrange(8)
    segment.write_bytes(data)


@mutation
def the_end_of_a_segment_cut_off(scene: Scene) -> None:
    (segment,) = (scene.path / "segments").iterdir()
    data = segment.read_bytes()
    segment.write_bytes(data[: scene.rng.randrange(len(data) // 4, len(data) - 40)])
    if scene.rng.random() < 0.5:
        scene.forget_caches()


# -- the ledger ------------------------------------------------------------------------------------------------------


@mutation
def a_byte_of_a_ledger_line(scene: Scene) -> None:
    flip(scene.ledger, scene.rng)
    if scene.rng.random() < 0.5:
        scene.forget_caches()


def edit_lines(scene: Scene, change: Callable[[list[bytes]], None]) -> None:
    lines = scene.ledger.read_bytes().splitlines(keepends=True)
    change(lines)
    scene.ledger.write_bytes(b"".join(lines))
    if scene.rng.random() < 0.5:
        scene.forget_caches()


@mutation
def a_ledger_line_removed(scene: Scene) -> None:
    edit_lines(scene, lambda lines: lines.pop(scene.rng.randrange(len(lines))) and None)


@mutation
def a_ledger_line_inserted(scene: Scene) -> None:
    def change(lines: list[bytes]) -> None:
        lines.insert(scene.rng.randrange(len(lines) + 1), scene.rng.choice(lines))

    edit_lines(scene, change)


@mutation
def ledger_lines_reordered(scene: Scene) -> None:
    def change(lines: list[bytes]) -> None:
        at, to = scene.rng.sample(range(len(lines)), 2)
        lines[at], lines[to] = lines[to], lines[at]

    edit_lines(scene, change)


def rehashed(events: list[dict[str, object]]) -> bytes:
    """Lines as the program writes them: numbered, in order of time, each naming the one before."""
    lines, leaf, time = [], "0" * 64, ""
    for seq, event in enumerate(events):
        time = max(time, str(event["time"]))
        line = rfc8785.dumps({**event, "seq": seq, "prev": leaf, "time": time})  # type: ignore[dict-item]
        leaf = hashlib.sha256(b"\0" + line).hexdigest()
        lines.append(line + b"\n")
    return b"".join(lines)


def forge(scene: Scene, change: Callable[[list[dict[str, object]]], None]) -> None:
    """A ledger that is perfectly good in itself, with nothing left that remembers the true one."""
    events = [json.loads(line) for line in scene.ledger.read_bytes().splitlines()]
    change(events)
    scene.ledger.write_bytes(rehashed(events))
    for path in scene.path.glob("ledger.sqlite*"):
        path.unlink()


@mutation
def the_tail_of_the_ledger_cut_off(scene: Scene) -> None:
    def change(events: list[dict[str, object]]) -> None:
        del events[scene.rng.randrange(5, len(events)) :]

    forge(scene, change)


@mutation
def the_tail_of_the_ledger_forged(scene: Scene) -> None:
    """All of it from some line on, longer than it was, every hash right."""

    def change(events: list[dict[str, object]]) -> None:
        cut = scene.rng.randrange(5, len(events))
        tail = events[cut:]
        del events[cut:]
        lost = scene.rng.randrange(len(tail))
        events += [event for number, event in enumerate(tail) if number != lost and scene.rng.random() < 0.7]
        events += [{"event": "note", "time": tail[-1]["time"], "text": "all is well"} for _ in range(len(tail) + 3)]

    forge(scene, change)


@mutation
def one_ledger_line_rewritten_and_all_hashes_after_it(scene: Scene) -> None:
    def change(events: list[dict[str, object]]) -> None:
        event = scene.rng.choice(events[1:])
        event["reason"] = f"as it always was {scene.rng.random()}"

    forge(scene, change)


@mutation
def a_ref_moved_without_an_event(scene: Scene) -> None:
    """In the cache that everybody reads refs from, with every checksum of the cache right."""
    with Archive.open(scene.path) as archive:
        archive.ledger.refs()
        cache = archive.ledger._view._slot.cache
        assert cache is not None
        _, mtime = cache.head()
        target = scene.rng.choice([scene.victim.bare, scene.victim.first])
        cache.begin()
        head, totals = cache._change()
        db = cache._db
        seq, ref, time, was, fields, old = db.execute(
            "SELECT seq, ref, time, target, fields, checksum FROM moves WHERE ref='main' ORDER BY seq DESC"
        ).fetchone()
        assert was != bytes(target)
        told = json.dumps({**json.loads(fields), "to": str(target)})
        row = (seq, ref, time, bytes(target), told)
        new = cache._checksum("move", *row)
        db.execute("UPDATE moves SET target=?, fields=?, checksum=? WHERE seq=?", (row[3], told, new, seq))
        name, count, total, before = db.execute(
            "SELECT ref, moves, moves_sum, checksum FROM refs WHERE ref='main'"
        ).fetchone()
        tip = (name, count, total ^ old ^ new)
        after = cache._checksum("ref", *tip)
        db.execute("UPDATE refs SET moves_sum=?, checksum=? WHERE ref='main'", (tip[2], after))
        cache._working = head, totals._replace(refs_sum=totals.refs_sum ^ before ^ after)
        cache.commit(mtime)
    with Archive.open(scene.path) as archive:
        assert archive.ledger.ref("main")[-1].target == target  # the lie is believed


@mutation
def a_ref_moved_from_where_it_was_not(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        target = scene.rng.choice([scene.victim.bare, scene.victim.first])
        archive.ledger.append("ref.set", **{"ref": "main", "from": str(scene.victim.bare), "to": str(target)})


# -- documents -------------------------------------------------------------------------------------------------------


def put_forged(archive: Archive, document: Document, kind: Kind = Kind.RECORD) -> Digest:
    """Around the repository: no rule is asked."""
    links = [link for link in document.links() if archive.contains(link)]
    return archive.put_bytes(document.to_bytes(), kind=kind, links=links).digest


def install(archive: Archive, manifest: Manifest, ref: str = "main", **fields: str | bool) -> Digest:
    """Put a forged manifest, pin it, and move a ref to it."""
    digest = put_forged(archive, manifest, Kind.MANIFEST)
    archive.pin(digest, kind=Kind.MANIFEST)
    now = archive.ledger.ref(ref)[-1].target
    archive.ledger.append("ref.set", **{"ref": ref, "from": str(now), "to": str(digest), **fields})
    return digest


def second(archive: Archive, scene: Scene) -> Manifest:
    return Repository(archive).load(scene.victim.second)


def bare(manifest: Manifest) -> Manifest:
    return manifest.revised(evals=(), approvals=(), tripwire=Tripwire())


@mutation
def a_report_of_another_assembly(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        other = Repository(archive).load(scene.rng.choice([scene.victim.bare, scene.victim.first]))
        install(archive, bare(second(archive, scene)).revised(evals=other.evals))


@mutation
def a_report_rewritten_for_this_assembly(scene: Scene) -> None:
    """The report itself is forged to name this assembly; its place in the manifest is signed."""
    with Archive.open(scene.path) as archive:
        manifest = second(archive, scene)
        other = Repository(archive).load(scene.victim.first).evals[0]
        report = Repository(archive).load_record(other.report, EvalReport)
        forged = Repository(archive).put_record(report.revised(assembly=manifest.assembly.digest))
        fields = {**dict(report.result), "report": forged, "recipe": report.recipe}
        install(archive, manifest.revised(evals=(EvalSummary(**fields),)))


@mutation
def a_score_moved_to_another_recipe(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        manifest = bare(second(archive, scene))
        evals = tuple(each.revised(recipe=NF4.digest) for each in second(archive, scene).evals)
        install(archive, manifest.revised(evals=evals, recipe=NF4))


@mutation
def a_score_raised_in_the_manifest(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        manifest = second(archive, scene)
        (summary,) = manifest.evals
        raised = summary.revised(passed=summary.n, score=1.0, interval=None)
        install(archive, bare(manifest).revised(evals=(raised,)))


def forged_report(scene: Scene, archive: Archive, **changes: object) -> None:
    manifest = second(archive, scene)
    report = Repository(archive).load_record(manifest.evals[0].report, EvalReport).revised(**changes)
    digest = Repository(archive).put_record(report)
    fields = {**dict(report.result), "report": digest, "recipe": report.recipe}
    install(archive, bare(manifest).revised(evals=(EvalSummary(**fields),)))


@mutation
def items_that_do_not_add_up(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        report = Repository(archive).load_record(second(archive, scene).evals[0].report, EvalReport)
        assert report.items is not None
        lines = archive.get_bytes(report.items).splitlines(keepends=True)
        number = scene.rng.randrange(len(lines))
        how = scene.rng.randrange(4)
        if how == 0:
            flipped = lines[number].replace(b"passed", b"failure").replace(b'"failed"', b'"passed"')
            lines[number] = flipped
        elif how == 1:
            del lines[number]
        elif how == 2:
            lines.append(b'{"name":"one more","verdict":"passed"}\n')
        else:
            lines[number] = lines[(number + 1) % len(lines)]
        forged_report(scene, archive, items=archive.put_bytes(b"".join(lines)).digest)


@mutation
def a_score_that_its_items_do_not_give(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        report = Repository(archive).load_record(second(archive, scene).evals[0].report, EvalReport)
        n = report.result.n
        forged_report(scene, archive, result=report.result.revised(passed=n, score=1.0, interval=None))


@mutation
def an_interval_narrowed(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        result = Repository(archive).load_record(second(archive, scene).evals[0].report, EvalReport).result
        assert result.interval is not None
        low = result.interval.low + (result.score - result.interval.low) * scene.rng.uniform(0.01, 0.9)
        forged_report(scene, archive, result=result.revised(interval=result.interval.revised(low=low)))


def wire_over(scene: Scene, archive: Archive, manifest: Manifest, **changes: object) -> Manifest:
    """The manifest with a tripwire report that was changed and put as if it were the true one."""
    assert manifest.tripwire.report is not None
    report = Repository(archive).load_record(manifest.tripwire.report, TripwireReport).revised(**changes)
    digest = Repository(archive).put_record(report)
    wire = Tripwire(status=report.status, report=digest, recipe=report.recipe)
    return manifest.revised(tripwire=wire, approvals=())


def easy_policy(scene: Scene, archive: Archive) -> Digest:
    limit = scene.rng.uniform(0.01, 0.7)
    easy = TripwirePolicy(name="easier", rules=(POLICY.rules[0].revised(limit=limit),))
    return Repository(archive).put_record(easy)


@mutation
def a_policy_written_after_the_run(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        install(archive, wire_over(scene, archive, second(archive, scene), policy=easy_policy(scene, archive)))


@mutation
def a_policy_written_after_the_run_that_is_said_to_be_later(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        policy = easy_policy(scene, archive)
        began = str(archive.ledger.checkpoint())
        install(archive, wire_over(scene, archive, second(archive, scene), policy=policy, began=began))


@mutation
def a_policy_written_during_the_run(scene: Scene) -> None:
    """After it began, before anything was measured: whoever wrote it may have known what was coming."""
    with Archive.open(scene.path) as archive:
        house = scene.house(archive)
        began = str(archive.ledger.checkpoint())
        policy = easy_policy(scene, archive)
        adapters = (use.adapter for use in second(archive, scene).assembly.adapters)
        measured = house.wired(bare(house.manifest(*adapters)), passed=scene.rng.choice([3, 4]), n=5)
        install(archive, wire_over(scene, archive, measured, policy=policy, began=began))


@mutation
def a_tripwire_that_is_said_not_to_have_tripped(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        house = scene.house(archive)
        plan = house.manifest(*(use.adapter for use in second(archive, scene).assembly.adapters))
        tripped = house.wired(bare(plan), passed=1)
        install(archive, wire_over(scene, archive, tripped, tripped=(), status="clear"))


@mutation
def a_tripwire_value_that_no_report_measured(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        manifest = second(archive, scene)
        assert manifest.tripwire.report is not None
        report = Repository(archive).load_record(manifest.tripwire.report, TripwireReport)
        value = scene.rng.uniform(0.8, 1.0)
        measures = tuple(measure.revised(value=value) for measure in report.measures)
        install(archive, wire_over(scene, archive, manifest, measures=measures))


@mutation
def a_tripwire_that_tripped_later_and_is_kept_quiet(scene: Scene) -> None:
    """The same pair was run again and tripped; the manifest goes on naming the report that was clear."""
    with Archive.open(scene.path) as archive:
        house, manifest = scene.house(archive), second(archive, scene)
        house.wired(bare(manifest), passed=scene.rng.randrange(2))


@mutation
def a_tripwire_of_another_assembly(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        other = Repository(archive).load(scene.rng.choice([scene.victim.bare, scene.victim.first]))
        install(archive, bare(second(archive, scene)).revised(tripwire=other.tripwire))


@mutation
def a_tripwire_measured_on_another_assembly(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        other = Repository(archive).load(scene.victim.first).evals[0]
        measure = TripwireMeasure(
            suite="basics", suite_digest=SUITE, metric="pass@1", value=other.score, report=other.report
        )
        install(archive, wire_over(scene, archive, second(archive, scene), measures=(measure,)))


# -- the guard's own documents, and the gate's ------------------------------------------------------------------------


def install_guarded(scene: Scene, **how: object) -> None:
    with Archive.open(scene.path) as archive:
        house = scene.house(archive)
        adapters = (use.adapter for use in second(archive, scene).assembly.adapters)
        install(archive, guarded(house, house.manifest(*adapters), **how))  # type: ignore[arg-type]


@mutation
def a_guard_report_that_its_numbers_do_not_give(scene: Scene) -> None:
    effect = scene.rng.uniform(0.0001, 0.02)
    install_guarded(
        scene, forge=lambda report: report.revised(judgement=replace(report.judgement, minimal_effect=effect))
    )


@mutation
def a_number_of_the_guard_changed_in_its_full_report(scene: Scene) -> None:
    e_value = scene.rng.uniform(0.01, 0.7)

    def forge(report: GuardReport) -> GuardReport:
        return report.revised(standings=tuple(replace(each, e_value=e_value) for each in report.standings))

    install_guarded(scene, forge=forge)


@mutation
def a_guard_report_of_another_assembly(scene: Scene) -> None:
    other = Digest.of(scene.rng.randbytes(8))
    install_guarded(scene, forge=lambda report: report.revised(assembly=other))


@mutation
def a_guard_policy_written_after_the_run(scene: Scene) -> None:
    """The run is said to have begun before the guard's policy was there; the simple policy's place is not touched."""
    with Archive.open(scene.path) as archive:
        early = next(e.seq for e in archive.ledger.entries() if e.fields.get("record") == str(GUARD.digest))
        began = str(archive.ledger.checkpoint(scene.rng.randrange(early - 1, early + 1)))
    install_guarded(scene, began=began)


def draw_lines(archive: Archive, step: str) -> list[dict[str, JSON]]:
    """What the ledger says of draws."""
    return [dict(e.fields) for e in archive.ledger.entries() if e.event == "holdout" and e.fields["step"] == step]


@mutation
def a_draw_that_nobody_committed_to(scene: Scene) -> None:
    name = f"week-{scene.rng.randrange(32, 99)}"
    install_guarded(scene, draw=name, consume=False)


@mutation
def a_draw_opened_for_one_more_candidate(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        (opened,) = draw_lines(archive, "open")
        archive.ledger.append("holdout", **{**opened, "candidate": str(Digest.of(scene.rng.randbytes(8)))})
    install_guarded(scene, consume=False)


@mutation
def a_draw_that_was_committed_to_twice(scene: Scene) -> None:
    """The second commitment is to a seed that was chosen when the items could be known."""
    with Archive.open(scene.path) as archive:
        (committed,) = draw_lines(archive, "commit")
        archive.ledger.append("holdout", **{**committed, "commitment": str(Digest.of(scene.rng.randbytes(8)))})


@mutation
def items_of_a_draw_that_an_earlier_one_had_consumed(scene: Scene) -> None:
    """Both draws are by the book of somebody who forgot what was consumed."""
    secret = Secret("week-32", scene.rng.getrandbits(48), scene.rng.randbytes(32).hex())
    count, suite = len(ITEMS), "basics"
    with Archive.open(scene.path) as archive:
        ledger, house = archive.ledger, scene.house(archive)
        manifest = house.manifest()
        sealed = commitment(suite, count, secret.seed, secret.salt)
        line: dict[str, JSON] = {"draw": secret.draw, "suite": suite, "count": count, "policy": str(GUARD.digest)}
        line["commitment"] = str(sealed)
        house.repository.put_record(tripwire_policy(GUARD, commitment=sealed))
        ledger.append("holdout", step="commit", **line)
        began = str(ledger.checkpoint())
        known = scene.rng.sample(ITEMS, scene.rng.randrange(1, 40))
        items: JSON = [*known, *(f"new/{number:03}" for number in range(count - len(known)))]
        shown: dict[str, JSON] = {"seed": secret.seed, "salt": secret.salt, "items": items}
        ledger.append("holdout", step="open", candidate=str(manifest.assembly.digest), **shown, **line)
        install(archive, guarded(house, manifest, began=began, draw=secret.draw, sealed=sealed, consume=False))


def let_in(scene: Scene, **experienced: object) -> None:
    """An adapter trained on a record that the gate's report lets in as if tests had passed."""
    with Archive.open(scene.path) as archive:
        repository = Repository(archive)
        adapter = adapter_tree(archive, scene.rng.randrange(100, 10**6))
        training = training_record(repository, scene.victim.base, adapter, None, **experienced)
        found = adapter_record(scene.victim.base, adapter, None, repository.put_record(training))
        install_adapter(scene, archive, scene.victim.base, adapter, repository.put_adapter_record(found))


@mutation
def raw_model_output_let_in_by_the_gate(scene: Scene) -> None:
    ground = scene.rng.choice(["none", "self-scored"])
    source = RecordSource(kind="model", name="nano", licence="Apache-2.0", assembly=Digest.of(scene.rng.randbytes(8)))
    let_in(scene, evidence=Evidence(ground=ground, checker="nobody"), source=source)  # type: ignore[arg-type]


@mutation
def experience_that_did_not_pass_let_in_by_the_gate(scene: Scene) -> None:
    let_in(scene, confidence=Confidence(passed=scene.rng.randrange(3), total=3))


@mutation
def experience_let_in_for_a_check_that_is_not_its_own(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        check = archive.put_bytes(scene.rng.randbytes(8)).digest
    let_in(scene, evidence=Evidence(ground="tests-passed", check=check, checker="sandbox/1"))


@mutation
def an_attestation_given_again_to_an_old_nonce(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        value = Digest.of(scene.rng.randbytes(8))
        Repository(archive).put_record(attestation(second(archive, scene), value=value))


@mutation
def an_attestation_of_another_assembly_told_as_of_this(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        told = attestation(second(archive, scene), nonce=scene.rng.randbytes(32).hex(), assembly=Digest.of(b"another"))
        record = put_forged(archive, told)
        about = str(second(archive, scene).assembly.digest)
        archive.ledger.append("evidence", kind="attestation", record=str(record), assembly=about)


@mutation
def an_attestation_that_is_gone(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        about = str(second(archive, scene).assembly.digest)
        record = str(Digest.of(scene.rng.randbytes(8)))
        archive.ledger.append("evidence", kind="attestation", record=record, assembly=about)


# -- approvals and signatures ----------------------------------------------------------------------------------------


def candidate(scene: Scene, archive: Archive) -> Digest:
    """A third manifest that nobody approved."""
    house = scene.house(archive)
    adapter = trained(house, scene.rng.randrange(1000, 10**6))
    return house.repository.put(house.wired(house.manifest(adapter)))


def move_prod(archive: Archive, target: Digest, **fields: str | bool) -> None:
    now = archive.ledger.ref("prod")[-1].target
    archive.ledger.append("ref.set", **{"ref": "prod", "from": str(now), "to": str(target), **fields})


@mutation
def an_approval_replayed_for_another_candidate(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        target = candidate(scene, archive)
        move_prod(archive, target, approval=str(scene.rng.choice(scene.victim.approvals)))


@mutation
def an_approval_of_another_candidate_in_a_manifest(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        install(archive, second(archive, scene).revised(approvals=(scene.victim.approvals[0],)))


@mutation
def an_approval_spent_twice(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        move_prod(archive, scene.victim.first, rollback=True)
        move_prod(archive, scene.victim.second, approval=str(scene.victim.approvals[1]))


@mutation
def a_protected_ref_moved_without_an_approval(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        fields: dict[str, str | bool] = scene.rng.choice([{}, {"rollback": True}, {"approval": str(scene.victim.bare)}])
        move_prod(archive, candidate(scene, archive), **fields)


def approve_as(scene: Scene, archive: Archive, name: str) -> None:
    house, target = scene.house(archive), candidate(scene, archive)
    approval = draft_approval(
        archive, "prod", house.repository.load(target), incumbent=house.repository.refs.find("prod")
    )
    envelope = put_envelope(archive, seal(approval_statement(approval), signer(name)))
    move_prod(archive, target, approval=str(envelope))


@mutation
def an_approval_by_a_revoked_key(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        approve_as(scene, archive, "bob")


@mutation
def an_approval_by_a_key_nobody_trusts(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        approve_as(scene, archive, f"mallory {scene.rng.random()}")


@mutation
def a_signature_that_is_none(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        manifest = second(archive, scene)
        statement = manifest_statement(scene.victim.second, manifest, str(archive.ledger.checkpoint()))
        forged = Envelope(statement, ((signer().public.id, scene.rng.randbytes(64)),))
        put_envelope(archive, forged)


@mutation
def a_signature_by_a_revoked_key(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        sign(scene.house(archive), scene.victim.second, "bob")


# -- what runs -------------------------------------------------------------------------------------------------------


@mutation
def a_lineage_cycle(scene: Scene) -> None:
    """The parent is made a child of its child, by a record that is as good as the true one."""
    with Archive.open(scene.path) as archive:
        parent, child = scene.victim.adapters
        true = Repository(archive).adapter_record(parent)
        assert true is not None
        put_forged(archive, true.revised(parent=child))


@mutation
def a_lineage_cut_short(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        manifest, child = bare(second(archive, scene)), scene.victim.adapters[1]
        (step,) = (step for step in manifest.lineage if step.adapter == child)
        install(archive, manifest.revised(lineage=(step.revised(parent=None),)))


def on_base(archive: Archive, manifest: Manifest, base: Digest) -> Manifest:
    return manifest.revised(assembly=manifest.assembly.revised(base=base))


@mutation
def a_base_swapped_for_one_of_the_same_shapes(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        other = base_tree(archive, scene.rng.randrange(100, 10**6))
        manifest = second(archive, scene)
        install(archive, on_base(archive, manifest if scene.rng.random() < 0.5 else bare(manifest), other))


@mutation
def a_base_swapped_with_all_records_forged(scene: Scene) -> None:
    """Every record is rewritten to name the other base. The tensors the training saw give it away."""
    with Archive.open(scene.path) as archive:
        other, repository = base_tree(archive, scene.rng.randrange(100, 10**6)), Repository(archive)
        adapter = adapter_tree(archive, scene.rng.randrange(100, 10**6))
        true = training_record(repository, scene.victim.base, adapter, None)
        training = repository.put_record(true.revised(base=other))
        record = repository.put_adapter_record(adapter_record(other, adapter, None, training))
        install_adapter(scene, archive, other, adapter, record)


def install_adapter(scene: Scene, archive: Archive, base: Digest, adapter: Digest, record: Digest) -> None:
    plan = scene.house(archive).repository.load(scene.victim.bare)
    manifest = Manifest(
        assembly=Assembly(base=base, tokenizer=scene.victim.tokenizer, adapters=(AdapterUse(adapter=adapter),)),
        source=plan.source,
        lineage=(LineageStep(adapter=adapter, parent=None, record=record),),
    )
    install(archive, manifest)


def forged_training(scene: Scene, **changes: object) -> None:
    """A new adapter whose training record, put with all the rest in order, says what is not so."""
    with Archive.open(scene.path) as archive:
        repository = Repository(archive)
        adapter = adapter_tree(archive, scene.rng.randrange(100, 10**6))
        record: TrainingRecord = training_record(repository, scene.victim.base, adapter, None).revised(**changes)
        found: AdapterRecord = adapter_record(
            scene.victim.base, adapter, None, put_forged(archive, record) if changes else repository.put_record(record)
        )
        install_adapter(scene, archive, scene.victim.base, adapter, repository.put_adapter_record(found))


@mutation
def an_adapter_trained_on_another_base(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        other = base_tree(archive, scene.rng.randrange(100, 10**6))
    forged_training(scene, base=other)


@mutation
def a_base_that_changed_during_training(scene: Scene) -> None:
    forged_training(scene, base_after=Digest.of(scene.rng.randbytes(8)))


@mutation
def an_adapter_that_its_training_did_not_make(scene: Scene) -> None:
    forged_training(scene, adapter_tensors=Digest.of(scene.rng.randbytes(8)))


@mutation
def data_that_the_source_gate_did_not_let_in(scene: Scene) -> None:
    what = scene.rng.randrange(3)
    stranger = Digest.of(scene.rng.randbytes(8))
    changes: list[dict[str, object]] = [{"data": (stranger,)}, {"experience": (stranger,)}, {"gate": None}]
    forged_training(scene, **changes[what])


@mutation
def an_adapter_that_does_not_fit(scene: Scene) -> None:
    """A base of the same names and other shapes under an adapter, with a record that claims it."""
    with Archive.open(scene.path) as archive:
        from safetensors.numpy import save  # noqa: PLC0415 - only here
        from victim import MODULE, noise  # noqa: PLC0415

        wide = {f"{MODULE}.weight": noise(scene.rng.randrange(10**6), 16, 4)}
        other = put_tree(archive, {"config.json": b"{}", "model.safetensors": save(wide)})
        adapter = adapter_tree(archive, scene.rng.randrange(100, 10**6))
        claim = adapter_record(other, adapter, None, Digest.of(b"")).revised(training=None, claim=True)
        install_adapter(scene, archive, other, adapter, Repository(archive).put_adapter_record(claim))


@mutation
def an_adapter_record_that_lies_about_its_adapter(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        repository = Repository(archive)
        adapter = adapter_tree(archive, scene.rng.randrange(100, 10**6))
        training = repository.put_record(training_record(repository, scene.victim.base, adapter, None))
        lies: list[dict[str, object]] = [{"rank": 64}, {"alpha": scene.rng.uniform(5, 9)}, {"targets": ("lm_head",)}]
        lie = adapter_record(scene.victim.base, adapter, None, training).revised(**scene.rng.choice(lies))
        install_adapter(scene, archive, scene.victim.base, adapter, repository.put_adapter_record(lie))


@mutation
def a_tokenizer_changed_by_one_merge(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        other = put_tree(archive, {"tokenizer.json": merges(changed=True)})
        manifest = second(archive, scene)
        install(archive, manifest.revised(assembly=manifest.assembly.revised(tokenizer=other)))


@mutation
def an_adapter_left_out_of_an_approved_manifest(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        manifest = second(archive, scene)
        install(archive, manifest.revised(assembly=manifest.assembly.revised(adapters=()), lineage=()))


@mutation
def an_adapter_weight_changed(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        manifest = second(archive, scene)
        use = manifest.assembly.adapters[0].revised(weight=scene.rng.uniform(-2.0, 0.9))
        install(archive, manifest.revised(assembly=manifest.assembly.revised(adapters=(use,))))


@mutation
def a_manifest_that_is_not_canonical(scene: Scene) -> None:
    with Archive.open(scene.path) as archive:
        data = second(archive, scene).to_bytes()
        at = scene.rng.choice([i for i, byte in enumerate(data) if byte in b",:"])
        digest = archive.put_bytes(data[: at + 1] + b" " + data[at + 1 :], kind=Kind.MANIFEST).digest
        now = archive.ledger.ref("main")[-1].target
        archive.ledger.append("ref.set", **{"ref": "main", "from": str(now), "to": str(digest)})
