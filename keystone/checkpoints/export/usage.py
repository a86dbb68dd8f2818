"""How to load an export, in the words of its model card. The snippets are run by the tests as they stand."""

from __future__ import annotations

from manifests import Manifest

_PLAIN = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(DIR{trust})
tokenizer = AutoTokenizer.from_pretrained(DIR)
```"""

_ADAPTERS = """The adapters lie beside the base, each with the weight it is applied with:

```python
from peft import PeftModel
from peft.tuners.lora import LoraLayer

weights = {weights}
for number, weight in enumerate(weights, start=1):
    name = f"a{{number}}"
    if number == 1:
        model = PeftModel.from_pretrained(model, f"{{DIR}}/adapters/{{number}}", adapter_name=name)
    else:
        model.load_adapter(f"{{DIR}}/adapters/{{number}}", adapter_name=name)
    for module in model.modules():
        if isinstance(module, LoraLayer) and name in module.scaling:
            module.scaling[name] *= weight
model.base_model.set_adapter([f"a{{number}}" for number in range(1, len(weights) + 1)])
```"""

_OWN_CODE = """The modeling code lies beside the weights and needs torch and transformers 5; `trust_remote_code=True`
runs it. Read it first, as you would any other code."""

_VENDOR = """These are LoopCoder-V2's names and configuration, for the engine it was released with. Its modeling code is
not part of this directory: use an engine that knows the architecture, or copy the vendor's code files beside the
weights."""


_GGUF = """`model.gguf` holds weights, tokenizer and chat template in one file, for llama.cpp and what is built on it:
`llama-cli -m model.gguf`."""


def usage_text(manifest: Manifest, layout: str, *, remote_code: bool, merged: bool) -> str:
    """Markdown that says how to load the directory `DIR`."""
    plain = _PLAIN.format(trust=", trust_remote_code=True" if remote_code else "")
    parts = [_OWN_CODE] if remote_code else []
    parts.append({"vendor": _VENDOR, "gguf": _GGUF}.get(layout, plain))
    if manifest.assembly.adapters and not merged:
        parts.append(_ADAPTERS.format(weights=[use.weight for use in manifest.assembly.adapters]))
    return "\n\n".join(parts)
