"""Load a release as a stranger does: python -P fresh_load.py RELEASE PROBE THREADS, with transformers, without us.

PROBE is a safetensors file of inputs and of what the trained model computed for them. Prints JSON: names of weights
that were missing, left over or of another shape, and names of results that differ in any bit.
"""

import json
import sys
from typing import Any


def main() -> None:
    """Print what differs."""
    folder, probe, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    # Whatever is installed here, the release must not need it.
    sys.modules["xgenvideo"] = None  # type: ignore[assignment]
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoProcessor

    torch.set_num_threads(threads)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    model, loading = loaded
    model.eval()
    # Copies, as xgenvideo's own loader makes them: sums over memory that is mapped from a file may round otherwise.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    processors: Any = AutoProcessor
    processors.from_pretrained(folder, trust_remote_code=True)
    given = {name: tensor.clone() for name, tensor in load_file(probe).items()}
    video = (given["frames"][:, None], given["pts"][:, None], torch.ones_like(given["pts"][:, None]))
    with torch.inference_mode():
        found = {
            "logits": model(input_ids=given["tokens"], video_memory=model.read_video(*video)).logits,
            "text": model.get_text_features(given["caption"]),
            "video": model.get_video_features(*video)[:, 0],
        }
    report = {name: sorted(map(str, loading[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    report["differing"] = [name for name, value in found.items() if not torch.equal(value, given[name])]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
