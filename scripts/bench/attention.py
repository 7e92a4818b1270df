# SPDX-License-Identifier: Apache-2.0
"""Milliseconds of the vision encoder's attention alone, by picture and by who computes it.

    PYTHONPATH=scripts:TREE python -m bench.attention --out OUT.json     # one GPU, a minute
    PYTHONPATH=scripts:TREE python -m bench.attention --out OUT.json --tiny          # on a CPU

The attention of one block in the released dimensions (32 query heads, 8 of keys and values, 64
numbers each), inside windows and inside whole frames, on random queries, keys and values drawn
afresh: FlashAttention 3, the series' kernel for windows, Triton, torch's SDPA (sequence by
sequence, and with one mask where that is small), and xformers' block-diagonal attention where it is
installed. Each is compared with float32, sequence by sequence; xformers in float32, which is
another's code for the same, too. What cannot run is named with its error.
Exit status: 0, 1 if one differs from float32 by more than 1e-2, relative.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from series import engine

from .floor import milliseconds
from .tower import attend, square

BAR = 1e-2
SIZES = [224, 448, 672, 1036, 1792]
HEADS, KV_HEADS, DIM = 32, 8, 64
MERGE, WINDOW_UNITS = 2, 4
MASK = 2500  # patches up to which a mask of all pairs is made
# Where gpu.host puts the wheels that only this needs: no engine is to find them.
EXTRA = Path(__file__).parents[3] / "extra"
Work = Callable[[], torch.Tensor]


class Case:
    """Random queries, keys and values of one picture, and what attends to them."""

    def __init__(self, grid: tuple[int, int, int], windows: bool, args: argparse.Namespace) -> None:
        from vllm.model_executor.models import exaone4_5_vision as vision

        device, dtype = args.device, torch.float32 if args.tiny else torch.bfloat16
        inv_freq = 10000.0 ** -(torch.arange(0, DIM // 2, 2, device=device) / (DIM // 2))
        self.layout = vision.build_vision_layout(
            [grid], merge_size=MERGE, window_units=WINDOW_UNITS, inv_freq=inv_freq
        )
        self.windows, self.args = windows, args
        layout = self.layout
        self.boundaries = layout.cu_window_seqlens if windows else layout.cu_seqlens
        self.longest = layout.max_window_seqlen if windows else layout.max_seqlen
        generator = torch.Generator(device).manual_seed(args.seed)
        size = (grid[0] * grid[1] * grid[2], (HEADS + 2 * KV_HEADS) * DIM)
        self.qkv = torch.randn(size, generator=generator, device=device).to(dtype)
        rotated = self.qkv.float().view(1, len(self.qkv), -1, DIM)
        cos, sin = (x[None, :, None] for x in (layout.cos, layout.sin))
        first, second = rotated[:, :, : HEADS + KV_HEADS].chunk(2, -1)
        both = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
        self.exact = [both[:, :, :HEADS], both[:, :, HEADS:], rotated[:, :, HEADS + KV_HEADS :]]
        self.given = [x.to(dtype).contiguous() for x in self.exact]

    def expected(self) -> torch.Tensor:
        query, key, value = self.exact
        return attend(query, key, value, self.boundaries, self.longest)[0].flatten(1)

    # ---- who attends ----

    def kernel(self) -> Work:
        from vllm.model_executor.models.exaone4_5_vision_kernels import attend_windows

        layout = self.layout
        where = (layout.cos, layout.sin, self.boundaries, HEADS, KV_HEADS, DIM**-0.5)
        return lambda: attend_windows(self.qkv, *where)

    def rotation(self) -> Work:
        from vllm.model_executor.models.exaone4_5_vision_kernels import rotate_in_place

        qkv = self.qkv.clone()
        cos, sin = self.layout.cos, self.layout.sin

        def work() -> torch.Tensor:
            rotate_in_place(qkv, cos, sin, HEADS + KV_HEADS)
            return qkv

        return work

    def flash(self) -> Work:
        from vllm.v1.attention.ops.vit_attn_wrappers import vit_flash_attn_wrapper

        return lambda: vit_flash_attn_wrapper(
            *self.given,
            batch_size=1,
            is_rocm_aiter=False,
            fa_version=3,
            scale=DIM**-0.5,
            cu_seqlens=self.boundaries,
            max_seqlen=self.longest,
        )

    def triton(self) -> Work:
        from vllm.v1.attention.ops.vit_attn_wrappers import vit_triton_attn_wrapper

        return lambda: vit_triton_attn_wrapper(
            *self.given,
            batch_size=1,
            scale=DIM**-0.5,
            cu_seqlens=self.boundaries,
            max_seqlen=self.longest,
        )

    def sdpa(self) -> Work:
        from vllm.v1.attention.ops.vit_attn_wrappers import vit_torch_sdpa_wrapper

        return lambda: vit_torch_sdpa_wrapper(
            *self.given, scale=DIM**-0.5, cu_seqlens=self.boundaries, enable_gqa=True
        )

    def masked(self) -> Work:
        lengths = self.boundaries.diff().long()
        places = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        mask = places[:, None] == places[None, :]
        q, k, v = (x.transpose(1, 2) for x in self.given)
        attention = torch.nn.functional.scaled_dot_product_attention
        return lambda: attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)

    def xformers(self, exact: bool = False) -> Work:
        if str(EXTRA) not in sys.path:
            sys.path.append(str(EXTRA))
        from xformers.ops import fmha

        q, k, v = self.exact if exact else self.given
        group = HEADS // KV_HEADS
        q = q.unflatten(2, (KV_HEADS, group))
        k, v = (x.unsqueeze(3).expand(-1, -1, -1, group, -1) for x in (k, v))
        bias = fmha.BlockDiagonalMask.from_seqlens(self.boundaries.diff().tolist())
        return lambda: fmha.memory_efficient_attention_forward(q, k, v, attn_bias=bias)

    def xformers_exact(self) -> Work:
        return self.xformers(exact=True)

    def ways(self) -> dict[str, Callable[[], Work]]:
        found: dict[str, Callable[[], Work]] = {"FlashAttention 3": self.flash}
        if self.windows:
            found["the series' kernel, RoPE included"] = self.kernel
        found |= {"RoPE in place": self.rotation, "Triton": self.triton}
        found["SDPA, sequence by sequence"] = self.sdpa
        if len(self.qkv) <= MASK:
            found["SDPA, one mask"] = self.masked
        found["xformers, block-diagonal"] = self.xformers
        found["xformers in float32"] = self.xformers_exact
        return found


def measure(case: Case, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Milliseconds and relative error of each way, or why it cannot run."""
    expected, rows = case.expected(), {}
    for name, make in case.ways().items():
        try:
            work = make()
            actual = work().reshape(len(expected), -1).float().clone()
            row: dict[str, Any] = {"ms": milliseconds(work, args.repeats, args.warm_ups)}
        except Exception as error:  # of another's package, whose kinds are not known
            rows[name] = {"failed": f"{type(error).__name__}: {error}"[:400]}
            continue
        if name == "RoPE in place":
            actual, wanted = actual[:, : HEADS * DIM], case.exact[0][0].flatten(1)
        else:
            wanted = expected
        row["error"] = ((actual - wanted).norm() / wanted.norm()).item()
        rows[name] = row
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the results, as JSON")
    parser.add_argument("--tiny", action="store_true", help="small pictures, float32, on a CPU")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the inputs")
    args = parser.parse_args()
    args.device = "cpu" if args.tiny else "cuda"
    args.repeats, args.warm_ups = (1, 0) if args.tiny else (args.repeats, 3)
    engine.set_defaults(cpu=args.tiny)
    import vllm

    shapes = {str(size): square(size) for size in SIZES}
    if args.tiny:
        shapes = {"2 x 4 x 10": (2, 4, 10)}
    result: dict[str, Any] = {
        "device": "cpu" if args.tiny else torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "vllm": vllm.__version__},
        "seed": args.seed,
        "rows": {},
    }
    worst = 0.0
    for windows in (True, False):
        for name, grid in shapes.items():
            rows = measure(Case(grid, windows, args), args)
            kind = "windows" if windows else "frames"
            result["rows"][f"{name}, {kind}"] = rows
            args.out.write_text(json.dumps(result, indent=1))
            for way, row in rows.items():
                error = row.get("error", 0.0)
                worst = max(worst, error if error == error else float("inf"))
                print(f"{name}, {kind}: {way}: {row}", flush=True)
    print(f"largest relative error {worst:.1e} (allowed {BAR:g})")
    return 0 if worst <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
