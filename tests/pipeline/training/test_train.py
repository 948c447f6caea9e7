"""The train stage: what it writes, and that stopping it anywhere changes nothing."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from patchsae.pipeline.activations.stream import Stream
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.saes.quality import evaluate
from patchsae.pipeline.saes.sae import load_sae
from patchsae.pipeline.training import train
from patchsae.pipeline.training.adam import Adam
from patchsae.pipeline.training.member import Member, learning_rate
from patchsae.pipeline.training.objective import TrainedSaeConfig
from patchsae.pipeline.training.process_group import ALONE
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.checkpoints import Checkpoints
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.sae_inputs import activations, run
from tests.support.training_inputs import (
    EVERY_STEP,
    KINDS,
    N_TRAIN,
    NO_STEP,
    TOKENS,
    WIDTH,
    Killed,
    bytes_of,
    config_of,
    inputs_in,
    killed_at,
    values,
)


@pytest.fixture
def inputs(store: Store) -> dict[str, Artifact]:
    return inputs_in(store)


def _attempt(
    store: Store, config: TrainedSaeConfig, inputs: dict[str, Artifact], runtime: Runtime
) -> Artifact:
    return run(store, train.STAGE, config, inputs, runtime)


@pytest.mark.parametrize("mix", ["tokens", "images"])
def test_killed_anywhere_it_ends_in_the_same_bytes(
    store: Store, inputs: dict[str, Artifact], mix: str
) -> None:
    config = config_of(mix=mix, batch_size=40 if mix == "tokens" else 7)
    whole = _attempt(store, config, inputs, NO_STEP)
    expected, summary = bytes_of(whole), whole.manifest.summary
    store.discard(whole)
    for at in (1, 2, 13, 31, 59, 60):
        with pytest.raises(Killed):
            _attempt(store, config, inputs, killed_at(at))
        # The killed process had come further than its checkpoint.
        newest = sorted((whole.path / "checkpoints").iterdir())
        if at == 31:
            newest[-1].unlink()
        if at == 59:
            newest[-1].write_bytes(newest[-1].read_bytes()[:-100])
    resumed = _attempt(store, config, inputs, EVERY_STEP)
    assert bytes_of(resumed) == expected
    assert resumed.manifest.summary == summary
    assert not (resumed.path / "checkpoints").exists()


def test_a_checkpoint_holds_the_whole_state(store: Store, inputs: dict[str, Artifact]) -> None:
    def state_after(step: int) -> dict[str, np.ndarray]:
        with pytest.raises(Killed):
            _attempt(store, config_of(), inputs, killed_at(step))
        folder = next((store.root / "train").iterdir())
        checkpoint = Checkpoints(folder).latest()
        assert checkpoint is not None and checkpoint.step == step
        return checkpoint.arrays

    straight = state_after(20)
    store.discard(Artifact("train", "", next((store.root / "train").iterdir())))
    state_after(9)
    resumed = state_after(20)
    kinds = {name.split(".")[0] for name in straight}
    assert kinds == {"parameter", "adam", "state", "row"}
    assert straight["adam.mean_square.W_dec"].any()
    assert straight.keys() == resumed.keys()
    for name, array in straight.items():
        np.testing.assert_array_equal(array, resumed[name], err_msg=name)


def test_metrics_can_be_read_while_it_runs(store: Store, inputs: dict[str, Artifact]) -> None:
    config = config_of(n_steps=63)
    with pytest.raises(Killed):
        _attempt(store, config, inputs, killed_at(30))
    folder = next((store.root / "train").iterdir())
    shown = pl.scan_parquet(folder / "tables" / "training.parquet").collect()
    assert shown["step"].to_list() == [1, 6, 12, 18, 24, 30]
    # Killed before the next checkpoint, the rows after the last one come again.
    done = _attempt(store, config, inputs, EVERY_STEP)
    table = done.scan("training").collect()
    assert table["step"].to_list() == [1, 6, 12, 18, 24, 30, 36, 42, 48, 54, 60, 63]
    assert table.head(6).equals(shown)


def test_what_it_learns_and_reports(store: Store, inputs: dict[str, Artifact]) -> None:
    config = config_of(n_steps=300)
    done = _attempt(store, config, inputs, Runtime())
    table = done.scan("training").collect()
    summary = done.manifest.summary
    assert table["n_tokens"].to_list() == [40 * step for step in table["step"]]
    assert table["reconstruction"][-1] < 0.3 * table["reconstruction"][0]
    parts = table["reconstruction"] + table["penalty"] + table["auxiliary"]
    np.testing.assert_allclose(table["loss"], parts, rtol=1e-6)
    np.testing.assert_allclose(table["penalty"], 8e-5 * table["l1_norm"], rtol=1e-6)
    assert table["lr"][0] == pytest.approx(3e-4) and table["lr"][-1] == 3e-3
    assert (table["explained_variance"] < table["explained_variance_uncentred"]).all()
    assert summary == {"n_latents": 32, "n_steps": 300, "loss": table["loss"][-1], "l0": table["l0"][-1]}

    sae = load_sae(done)
    held_out = torch.from_numpy(values()[N_TRAIN:]).float().flatten(0, 1)
    assert evaluate(sae, [held_out])["explained_variance"] > 0.8  # type: ignore[operator]
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(32))
    described = json.loads((done.path / "config.json").read_text())
    assert described["kind"] == "relu_l1" and described["n_latents"] == 32 and described["width"] == WIDTH
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(done.path / "sae.safetensors").items()}
    assert shapes == {"W_enc": (WIDTH, 32), "b_enc": (32,), "W_dec": (32, WIDTH), "b_dec": (WIDTH,)}


def test_it_trains_on_its_split_and_tokens_alone(store: Store, inputs: dict[str, Artifact]) -> None:
    broken_values = values()
    broken_values[N_TRAIN:] = np.nan
    broken_values[:, 0] = np.nan
    broken = {**inputs, "activations": activations(store, broken_values, 5, 1)}
    done = _attempt(store, config_of(n_steps=5, tokens="patches"), broken, Runtime())
    assert all(tensor.isfinite().all() for tensor in load_sae(done).tensors().values())
    assert math.isfinite(float(done.manifest.summary["loss"]))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not finite"):
        _attempt(store, config_of(n_steps=5), broken, Runtime())


def test_a_diverging_loss_keeps_the_last_checkpoint(store: Store, inputs: dict[str, Artifact]) -> None:
    config = config_of(lr=1e30, lr_warmup_steps=0)
    with pytest.raises(UserError, match=r"no longer a number after step \d+; set a lower lr \(now 1e\+30\)"):
        _attempt(store, config, inputs, EVERY_STEP)
    for folder in (store.root / "train").iterdir():
        checkpoint = Checkpoints(folder).latest()
        if checkpoint is not None:
            assert all(np.isfinite(array).all() for array in checkpoint.arrays.values())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("relu_l1", {"l1_coefficient": 0.02, "dead_feature_window": 1}), ("topk", {}), ("gated", {})],
)
def test_bfloat16_ends_near_the_quality_of_float32(
    store: Store, inputs: dict[str, Artifact], kind: str, settings: dict[str, float]
) -> None:
    """Over steps enough for latents to die and learn again, after which weights and single losses differ."""
    x = torch.from_numpy(values()[N_TRAIN:]).float().flatten(0, 1)
    fvu = {}
    for precision in ("float32", "bfloat16"):
        config = config_of(kind, n_latents=128, n_steps=260, precision=precision, **settings)
        done = _attempt(store, config, inputs, NO_STEP)
        fvu[precision] = evaluate(load_sae(done), [x])["fvu"]
        assert done.scan("training").collect()["n_dead"].max() > 0
    assert fvu["float32"] < 0.5
    assert fvu["bfloat16"] == pytest.approx(fvu["float32"], rel=0.15), fvu


def test_an_unknown_split_is_named(store: Store, inputs: dict[str, Artifact]) -> None:
    with pytest.raises(UserError, match=r"split `trian`.*`train`, `test`"):
        _attempt(store, config_of(split="trian"), inputs, Runtime())


@pytest.mark.parametrize("field", ["log_every", "eval_split", "eval_tokens"])
def test_settings_of_earlier_versions_are_refused_with_what_to_do(field: str) -> None:
    with pytest.raises(
        ValidationError, match=f"`{field}` is no field any more: .*(leave it out|reconstruction)"
    ):
        config_of(**{field: 7})


def test_the_table_of_metrics_is_neither_short_nor_long() -> None:
    log_every = {n: config_of(n_steps=n).log_every for n in (1, 8, 60, 200, 3000, 10_000, 20_480, 10**6)}
    assert log_every == {1: 1, 8: 1, 60: 6, 200: 20, 3000: 20, 10_000: 20, 20_480: 40, 10**6: 2000}


def test_a_backbone_without_prefix_tokens_has_none_to_train_on(
    store: Store, inputs: dict[str, Artifact]
) -> None:
    bare = activations(store, values(), 5, 2, n_prefix=0)
    with pytest.raises(UserError, match="has no prefix tokens"):
        _attempt(store, config_of(tokens="prefix"), {**inputs, "activations": bare}, Runtime())


def test_learning_rate_warms_up_and_stays() -> None:
    config = config_of(lr=1.0, lr_warmup_steps=4)
    assert [learning_rate(config, step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert learning_rate(config_of(lr=1.0, lr_warmup_steps=0), 0) == 1


def test_schedules_in_closed_form() -> None:
    steps = range(20)
    common = {"lr": 1.0, "lr_warmup_steps": 4, "n_steps": 20}
    warm = [min(1, (step + 1) / 4) for step in steps]
    cosine = [learning_rate(config_of(lr_schedule="cosine", **common), step) for step in steps]
    expected = [
        w * (1 + math.cos(math.pi * max(0, step - 4) / 16)) / 2 for w, step in zip(warm, steps, strict=True)
    ]
    assert cosine == pytest.approx(expected)
    assert cosine[3] == 1 and cosine[12] == pytest.approx(0.5) and 0 < cosine[19] < 0.01
    trapezoid = config_of(lr_schedule="trapezoid", **common)
    assert [learning_rate(trapezoid, step) for step in steps] == pytest.approx(
        [*warm[:16], 1, 3 / 4, 2 / 4, 1 / 4]
    )
    longer = config_of(lr_schedule="trapezoid", lr_decay_steps=10, **common)
    assert [learning_rate(longer, step) for step in (9, 10, 11, 19)] == pytest.approx([1, 1, 0.9, 0.1])


def test_gradients_are_clipped_over_all_parameters(store: Store) -> None:
    out, x = store.begin(store.at("train", "0" * 64)), torch.from_numpy(values()[:8]).float().flatten(0, 1)
    token = torch.arange(len(x)) % TOKENS

    def gradients(**settings: float) -> torch.Tensor:
        member = Member.begin(config_of(**settings), out, x, TOKENS, ALONE)
        member.take_step(x, token)
        return torch.cat(
            [p.grad.flatten() for p in member.objective.parameters.values() if p.grad is not None]
        )

    free = gradients()
    short, long = float(free.norm() / 4), float(free.norm() * 4)
    torch.testing.assert_close(gradients(clip_grad_norm=short), free / 4, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(gradients(clip_grad_norm=long), free)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scaled_input_is_folded_back(store: Store, inputs: dict[str, Artifact], kind: str) -> None:
    stream = Stream(Activations(inputs["activations"]), range(50), 40, 0)
    x = stream.batch(0).to_float32()
    out = Builder(Artifact("train", "0" * 64, store.root / kind))
    member = Member.begin(config_of(kind, input_norm="expected_norm"), out, x, 6, ALONE)
    assert (x * member.scale).norm(dim=1).mean().item() == pytest.approx(math.sqrt(WIDTH))
    for _ in range(3):
        member.take_step(x, torch.zeros(len(x), dtype=torch.int64))
    # Before the last update is normalised away: rows of length 1 for both.
    inner, outer = member.objective.sae().with_unit_decoder(), member.sae()
    expected = (inner.encode(x * member.scale) @ inner.W_dec + inner.b_dec) / member.scale
    torch.testing.assert_close(outer.encode(x) @ outer.W_dec + outer.b_dec, expected, rtol=1e-4, atol=1e-4)


def test_adam_is_torch_s() -> None:
    generator = torch.Generator().manual_seed(0)
    mine = {"a": torch.randn(5, 3, generator=generator), "b": torch.randn(4, generator=generator)}
    theirs = [tensor.clone().requires_grad_() for tensor in mine.values()]
    adam, plain = Adam(mine), torch.optim.Adam(theirs)
    for step in range(1, 30):
        for tensor, other in zip(mine.values(), theirs, strict=True):
            tensor.grad = torch.randn(tensor.shape, generator=generator)
            other.grad = tensor.grad.clone()
        plain.param_groups[0]["lr"] = 0.01 * step
        plain.step()
        adam.step(0.01 * step, step)
    for tensor, other in zip(mine.values(), theirs, strict=True):
        torch.testing.assert_close(tensor, other.detach(), rtol=1e-6, atol=1e-7)
