# SPDX-License-Identifier: Apache-2.0
"""The part of `transformers` that runs in the engine's environment, with one release on the path.

python -m proof.transformers_worker make CHECKPOINT
python -m proof.transformers_worker run CHECKPOINT OUT.json TEST...
"""

import json
import sys
from pathlib import Path
from typing import Any

NUM_TOKENS = 48


def make_checkpoint(folder: Path) -> None:
    from tests.models.multimodal.exaone4_5_utils import get_hf_model, write_checkpoint

    write_checkpoint(folder, get_hf_model())


def make_requests() -> list[dict[str, Any]]:
    import numpy as np
    from PIL import Image

    def picture(width: int, height: int, shift: int = 0) -> np.ndarray[Any, Any]:
        y, x = np.mgrid[:height, :width]
        channels = [x + shift, y, (x // 16 + y // 16) % 2 * 200]
        return (np.stack(channels, axis=-1) % 256).astype(np.uint8)

    image, video = "<vision><|image_pad|></vision>\n", "<vision><|video_pad|></vision>\n"
    end = "<|endofturn|>\n<|assistant|>\n<think>\n"
    images = [Image.fromarray(picture(200, 150)), Image.fromarray(picture(90, 150, 77))]
    frames = np.stack([picture(120, 80, 40 * i) for i in range(3)])
    requests: list[tuple[str, dict[str, Any]]] = [
        (f"<|user|>\n{'the quick brown fox ' * 12}{end}", {}),
        (f"<|user|>\n{image}what is this?{end}", {"image": images[:1]}),
        (f"<|user|>\n{image}or {image}which?{end}", {"image": images}),
        (f"<|user|>\n{video}left or right?{end}", {"video": [frames]}),
        (f"<|user|>\n{video}and {image}same?{end}", {"image": images[1:], "video": [frames]}),
    ]
    return [{"prompt": prompt, "multi_modal_data": data} for prompt, data in requests]


def run(checkpoint: Path, out: Path, tests: list[str]) -> int:
    """The release on the path generates, then the tests run."""
    import pytest
    import transformers

    from .outcomes import Recorder
    from .unchanged import generate

    options = {"max_num_seqs": 4, "limit_mm_per_prompt": {"image": 2, "video": 1}}
    answers = generate(checkpoint, make_requests(), NUM_TOKENS, **options)
    out.write_text(json.dumps({"version": transformers.__version__, "answers": answers}))
    arguments = ["-q", "-p", "no:cacheprovider", *tests]
    return int(pytest.main(arguments, plugins=[Recorder(out.with_suffix(".jsonl"))]))


def main() -> int:
    verb, checkpoint, *others = sys.argv[1:]
    if verb == "run":
        return run(Path(checkpoint), Path(others[0]), others[1:])
    make_checkpoint(Path(checkpoint))
    return 0


if __name__ == "__main__":
    sys.exit(main())
