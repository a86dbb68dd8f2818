"""What a checkpoint says of its licence and its ancestors, and how far it is believed."""

import pytest

from keystone.checkpoints.licences import claim_labels, licence_of_text, read_card, spdx


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ("apache-2.0", None, "Apache-2.0"),
        ("Apache-2.0", None, "Apache-2.0"),
        ("mit", None, "MIT"),
        ("other", "qwen research", "LicenseRef-qwen-research"),
        ("other", None, None),
        ("llama3.1", None, "LicenseRef-llama3.1"),
        (None, None, None),
        ("!!!", None, None),
    ],
)
def test_hub_names_become_spdx(given: str | None, name: str | None, expected: str | None) -> None:
    assert spdx(given, name=name) == expected


def test_a_card_is_read_and_its_claims_are_called_claims() -> None:
    card = read_card(
        "---\nlicense: mit\nbase_model:\n- a/b\n- c/d\nbase_model_relation: merge\ntags: [x]\n---\n# Model\n"
    )
    assert card.licence == "MIT"
    assert claim_labels(card) == {
        "claimed/base_model": "a/b, c/d (unverified)",
        "claimed/base_model_relation": "merge (unverified)",
        "claimed/license": "mit (unverified)",
    }


SCORED = """---
datasets: [org/data, other/data]
model-index:
- name: it
  results:
  - task: {type: text-generation}
    dataset: {name: HumanEval, type: openai_humaneval}
    metrics:
    - {type: pass@1, name: pass@1, value: 0.45, verified: true}
    - {type: pass@10, value: "61 %"}
  - dataset: {type: mbpp}
    metrics: [{type: pass@1, value: 0.5}, {type: flag, value: true}, 7]
  - {metrics: [{value: 1}]}
  - nothing
- 3
---
"""


def test_scores_and_data_of_a_card_are_claims_in_words() -> None:
    assert claim_labels(read_card(SCORED)) == {
        "claimed/datasets": "org/data, other/data (unverified)",
        "claimed/model-index/1": "HumanEval, pass@1 = 0.45 (unverified)",
        "claimed/model-index/2": "HumanEval, pass@10 = 61 % (unverified)",
        "claimed/model-index/3": "mbpp, pass@1 = 0.5 (unverified)",
        "claimed/model-index/4": "an unnamed suite, an unnamed metric = 1 (unverified)",
    }


def test_a_card_with_hundreds_of_scores_says_how_many_were_left_out() -> None:
    metrics = ", ".join(f"{{type: m{number}, value: {number}}}" for number in range(300))
    labels = claim_labels(read_card(f"---\nmodel-index:\n- results:\n  - metrics: [{metrics}]\n---\n"))
    assert len(labels) == 17
    assert labels["claimed/model-index/more"] == "284 more scores in the card (unverified)"


@pytest.mark.parametrize(
    "text",
    [
        "no header at all",
        "---\nlicense: [unclosed\n---\n",
        "---\n- a list\n---\n",
        "---\na: &a [x, x]\nb: &b [*a, *a]\nlicense: mit\n---\n",
        "---\nlicense: !!python/object/apply:os.system ['true']\n---\n",
        "---\nlicense: 7\nbase_model: {a: b}\ndatasets: 3\nmodel-index: {results: []}\n---\n",
    ],
)
def test_a_card_that_cannot_be_trusted_says_nothing(text: str) -> None:
    card = read_card(text)
    assert card.licence is None
    assert card.claims == {}


def test_a_claim_is_one_short_line_of_plain_text() -> None:
    card = read_card('---\nbase_model: "a\\n\\u202eb' + "x" * 500 + '"\n---\n')
    assert "\n" not in card.claims["base_model"]
    assert card.claims["base_model"].isascii()
    assert len(card.claims["base_model"]) <= 200


def test_licence_texts() -> None:
    assert licence_of_text("                Apache License\n           Version 2.0, January 2004\n") == "Apache-2.0"
    assert licence_of_text("MIT License\n\nPermission is hereby granted, free of charge, to") == "MIT"
    assert licence_of_text("All rights reserved.") is None
