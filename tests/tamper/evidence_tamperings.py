"""Reports, scores, policies and tripwires: evidence that is of something else, or says something else."""

from __future__ import annotations

from manifest_house import POLICY, SUITE
from scene import Scene, bare, install, mutation, second

from csf_store import Archive, Digest
from manifests import (
    EvalReport,
    EvalSummary,
    Manifest,
    Recipe,
    Repository,
    Tripwire,
    TripwireMeasure,
    TripwirePolicy,
    TripwireReport,
)

NF4 = Recipe(dtype="bfloat16", quantization="nf4", modules=("m",), double_quant=True, compute_dtype="bfloat16")


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
