# SPDX-License-Identifier: Apache-2.0
"""The comparison of bf16 on a GPU with float32, as far as a CPU can run it (`make test-long`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


def test_numerics_on_a_cpu(tmp_path: Path) -> None:
    """Tower and logits of every case within 1e-5 of transformers, without a GPU in float32."""
    out = tmp_path / "numerics.json"
    # Stages run in the work tree.
    path = os.pathsep.join([str(Path.cwd()), str(SCRIPTS)])
    done = subprocess.run(
        [sys.executable, "-m", "bench.numerics", "--tiny", "--out", str(out)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 8 and all(row["within"] for row in rows)
