"""The Triton kernels against the plain versions, by Triton's interpreter, and through its compiler for a real card."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton comes with torch on Linux alone")

POINTERS = {
    "h",
    "bound",
    "counts",
    "offsets",
    "places",
    "latent",
    "value",
    "index",
    "bounds",
    "W",
    "A",
    "out",
}
INT64 = {"offsets", "bounds", "counts", "places"}
INT32 = {"latent", "index"}


@pytest.mark.slow
def test_kernels_agree_with_the_plain_versions() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.support.interpreted_kernels"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout == "kernels agree\n"


@pytest.mark.parametrize(
    "name", ["_count_kernel", "_compact_kernel", "_weighted_sums_kernel", "_products_kernel"]
)
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_a_card(name: str, capability: int, tmp_path: Path) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from patchsae.pipeline.saes.sparse import kernels

    kernel = getattr(kernels, name)
    signature, constants = {}, {}
    for argument in kernel.arg_names:
        if argument.isupper() and argument not in POINTERS:
            signature[argument], constants[argument] = "constexpr", 16 if argument == "ENTRIES" else 256
        elif argument in POINTERS:
            kind = "i64" if argument in INT64 else "i32" if argument in INT32 else "fp32"
            signature[argument] = "*bf16" if argument == "h" else f"*{kind}"
        else:
            signature[argument] = "i32"
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
    )
    assert f".target sm_{capability}" in compiled.asm["ptx"]
