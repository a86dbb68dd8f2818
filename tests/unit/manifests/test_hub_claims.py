"""What a publisher claims stays a claim: it is shown as one, and no audit or search takes it for evidence."""

from click.testing import CliRunner
from manifest_house import House

from keystone.cli import main
from manifests import ManifestQuery, audit, claims_of

CLAIMS = {
    "claimed/base_model": "org/model (unverified)",
    "claimed/model-index/1": "basics, pass@1 = 0.99 (unverified)",
}


def test_an_audit_finds_the_same_with_and_without_claims(house: House) -> None:
    manifest = house.manifest(house.adapter("a"))
    plain = house.repository.put(manifest)
    claiming = house.repository.put(manifest.revised(labels={**CLAIMS, "team": "search"}))
    assert claims_of(house.repository.load(claiming)) == {
        "base_model": "org/model (unverified)",
        "model-index/1": "basics, pass@1 = 0.99 (unverified)",
    }
    before, after = audit(house.archive, plain), audit(house.archive, claiming)
    assert [(line.check, line.verdict) for line in before.lines] == [(line.check, line.verdict) for line in after.lines]
    assert not any("claimed" in line.message or "0.99" in line.message for line in after.lines)
    assert not list(house.repository.find(ManifestQuery(suite="basics", metric="pass@1", at_least=0.5)))


def test_show_says_whose_words_they_are(house: House) -> None:
    digest = house.repository.put(house.manifest().revised(labels=CLAIMS))
    other = house.put()
    shown = [
        CliRunner().invoke(main, ["--archive", str(house.archive.path), "manifest", "show", str(each)]).stdout
        for each in (digest, other)
    ]
    assert "nothing here verified them" in shown[0]
    assert "  model-index/1: basics, pass@1 = 0.99\n" in shown[0]
    assert "claims" not in shown[1]
