"""Lean imports leave out what answering never needs, and answer the same."""

import json
import subprocess
import sys
from pathlib import Path

import keystone

SCRIPT = """
import json, sys
from keystone.cli.lean import import_lean
import torch
before = (torch.compile, torch.compiler.disable, torch.distributed.is_available())
import_lean(bitsandbytes=True)
assert (torch.compile, torch.compiler.disable, torch.distributed.is_available()) == before
heavy = ("torch._dynamo", "torch._inductor", "sympy", "torch.distributed.tensor", "peft", "scipy", "sklearn")
found = [name for name in heavy if name in sys.modules]
from keystone.loader import load
loaded = load("nano", archive=sys.argv[1], quantization="int8", cache="ignore")
text = loaded.complete(["def add(a, b):\\n"], max_new_tokens=12)
found += [name for name in ("torch._dynamo", "sympy", "peft") if name in sys.modules]
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
assert TransformGetItemToIndex().__enter__ is not None
print(json.dumps({"found": found, "text": text, "loader": "keystone.loader" in sys.modules}))
"""


def test_a_lean_process_answers_like_any_other_without_compiler_and_peft(nano_archive: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(nano_archive)]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert answer["found"] == []
    assert answer["loader"]
    loaded = keystone.load("nano", archive=nano_archive, quantization="int8", cache="ignore")
    assert answer["text"] == loaded.complete(["def add(a, b):\n"], max_new_tokens=12)


ADAPTED = """
from keystone.cli.lean import import_lean
import_lean(bitsandbytes=True)
from keystone.quantize import before_peft
before_peft()
import sys
import torch
from peft import LoraConfig, get_peft_model
assert "torch._dynamo" not in sys.modules
plain = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
x = torch.ones(1, 4)
expected = plain(x)
wrapped = get_peft_model(plain, LoraConfig(target_modules=["0"]))
assert torch.equal(wrapped(x), expected)  # LoRA begins as nothing
"""


def test_a_lean_process_can_attach_adapters() -> None:
    subprocess.run([sys.executable, "-c", ADAPTED], check=True, capture_output=True, text=True)
