"""Run the vendor's model on the inputs of this folder and write the logits that `keystone parity check` compares with.

Copied beside `spec.json` and `inputs.safetensors` by `keystone parity capture`. It needs torch, transformers and
safetensors, and nothing of Keystone:

    python reference.py PATH_OF_THE_VENDORS_CHECKPOINT

The checkpoint's own modeling code is run (`trust_remote_code`), so use it where you would run that model anyway. Where
the vendor has another engine, write `reference.safetensors` with it: for every input and dtype a tensor
`<input>.<dtype>.logits` of shape [tokens, vocab], one full forward pass over the ids, and the metadata written below.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Load, run every input in every dtype, write."""
    here = Path(__file__).parent
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("checkpoint", help="directory or hub id of the vendor's checkpoint")
    arguments.add_argument("--device", default="cpu", help="cpu or cuda; float32 on a GPU is run without TF32")
    arguments.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="one dtype only; default all that are asked"
    )
    arguments.add_argument("--out", type=Path, default=here / "reference.safetensors")
    asked = arguments.parse_args()

    import torch  # noqa: PLC0415 - after the arguments, so that --help is quick
    import transformers  # noqa: PLC0415
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    text = (here / "spec.json").read_text(encoding="utf-8")
    spec = json.loads(text)
    ids = load_file(here / "inputs.safetensors")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    found: dict[str, Any] = {}
    for dtype in [asked.dtype] if asked.dtype else spec["dtypes"]:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            asked.checkpoint, trust_remote_code=True, torch_dtype=getattr(torch, dtype)
        )
        model = model.to(asked.device).eval()
        for given in spec["inputs"]:
            name = given["name"]
            row = ids[f"{name}.input_ids"].to(asked.device)[None]
            with torch.inference_mode():
                logits = model(input_ids=row, use_cache=False).logits[0]
            found[f"{name}.{dtype}.logits"] = logits.to("cpu", torch.float32).contiguous()
            sys.stdout.write(f"{name} {dtype}: {list(logits.shape)}\n")
        del model
    engine = f"transformers {transformers.__version__}, torch {torch.__version__}, {asked.device}"
    save_file(found, asked.out, {"format": "pt", "spec": text, "engine": engine})
    sys.stdout.write(f"wrote {asked.out}\n")


if __name__ == "__main__":
    main()
