"""The train stage: what it writes, and that stopping it anywhere changes nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from sae_inputs import activations, run
from safetensors.torch import load_file
from training_inputs import (
    KINDS,
    N_TEST,
    N_TRAIN,
    TOKENS,
    WIDTH,
    Killed,
    KillingReporter,
    bytes_of,
    config_of,
    inputs_in,
    values,
)

from pipeline import train
from pipeline.adam import Adam, clip_
from pipeline.ranks import ALONE
from pipeline.saes.base import load_sae
from pipeline.saes.objective import TrainedSaeConfig
from pipeline.stage import Runtime
from pipeline.stream import Stream
from pipeline.trainee import Trainee, learning_rate
from pipeline.training_metrics import Reconstruction
from storage import tables
from storage.activations import Activations
from storage.artifacts import Artifact, Builder, Store
from storage.checkpoints import Checkpoints
from storage.errors import UserError


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
    whole = _attempt(store, config, inputs, Runtime(checkpoint_seconds=1e9))
    expected, summary = bytes_of(whole), whole.manifest.summary
    store.discard(whole)
    every_step = Runtime(checkpoint_seconds=0)
    for at in (1, 2, 13, 31, 59, 60):
        with pytest.raises(Killed):
            _attempt(store, config, inputs, replace(every_step, reporter=KillingReporter(at)))
        # The killed process had come further than its checkpoint.
        newest = sorted((whole.path / "checkpoints").iterdir())
        if at == 31:
            newest[-1].unlink()
        if at == 59:
            newest[-1].write_bytes(newest[-1].read_bytes()[:-100])
    resumed = _attempt(store, config, inputs, every_step)
    assert bytes_of(resumed) == expected
    assert resumed.manifest.summary == summary
    assert not (resumed.path / "checkpoints").exists()


def test_a_checkpoint_holds_the_whole_state(store: Store, inputs: dict[str, Artifact]) -> None:
    def state_after(kill_at: int, runtime: Runtime) -> dict[str, np.ndarray]:
        with pytest.raises(Killed):
            _attempt(store, config_of(), inputs, replace(runtime, reporter=KillingReporter(kill_at)))
        folder = next((store.root / "train").iterdir())
        checkpoint = Checkpoints(folder).latest()
        assert checkpoint is not None and checkpoint.step == kill_at
        return checkpoint.arrays

    runtime = Runtime(checkpoint_seconds=0)
    straight = state_after(20, runtime)
    store.discard(Artifact("train", "", next((store.root / "train").iterdir())))
    state_after(9, runtime)
    resumed = state_after(20, runtime)
    kinds = {name.split(".")[0] for name in straight}
    assert kinds == {"parameter", "adam", "state", "row"}
    assert straight["adam.mean_square.W_dec"].any()
    assert straight.keys() == resumed.keys()
    for name, array in straight.items():
        np.testing.assert_array_equal(array, resumed[name], err_msg=name)


def test_metrics_can_be_read_while_it_runs(store: Store, inputs: dict[str, Artifact]) -> None:
    runtime = Runtime(checkpoint_seconds=0)
    with pytest.raises(Killed):
        _attempt(store, config_of(), inputs, replace(runtime, reporter=KillingReporter(30)))
    folder = next((store.root / "train").iterdir())
    shown = pl.scan_parquet(folder / "tables" / "training.parquet").collect()
    assert shown["step"].to_list() == [1, 7, 14, 21, 28]
    # Killed before the next checkpoint, the rows after the last one come again.
    done = _attempt(store, config_of(), inputs, runtime)
    table = tables.of(done, "training").collect()
    assert table["step"].to_list() == [1, 7, 14, 21, 28, 35, 42, 49, 56, 60]
    assert table.head(5).equals(shown)


def test_what_it_learns_and_reports(store: Store, inputs: dict[str, Artifact]) -> None:
    config = config_of(n_steps=300)
    done = _attempt(store, config, inputs, Runtime())
    table = tables.of(done, "training").collect()
    summary = done.manifest.summary
    assert table["n_tokens"].to_list() == [40 * step for step in table["step"]]
    assert table["reconstruction"][-1] < 0.3 * table["reconstruction"][0]
    parts = table["reconstruction"] + table["penalty"] + table["auxiliary"]
    np.testing.assert_allclose(table["loss"], parts, rtol=1e-6)
    np.testing.assert_allclose(table["penalty"], 8e-5 * table["l1_norm"], rtol=1e-6)
    assert table["lr"][0] == pytest.approx(3e-4) and table["lr"][-1] == 3e-3
    assert (table["explained_variance"] < table["explained_variance_uncentred"]).all()
    assert summary["explained_variance"] > 0.8  # type: ignore[operator]
    assert summary["n_eval_tokens"] == N_TEST * TOKENS
    assert summary["n_steps"] == 300

    sae = load_sae(done)
    x = torch.from_numpy(values()[N_TRAIN:]).float().flatten(0, 1)
    f = sae.encode(x)
    residual = (f @ sae.W_dec + sae.b_dec - x).double()
    variance = (x.double() - x.double().mean(0)).square().sum()
    assert summary["explained_variance"] == pytest.approx(1 - (residual.square().sum() / variance).item())
    assert summary["l0"] == pytest.approx((f > 0).sum(1).double().mean().item())
    assert summary["dead_fraction"] == pytest.approx((~(f > 0).any(0)).double().mean().item())
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
    config = config_of(n_steps=5, tokens="patches", eval_split=None)
    summary = _attempt(store, config, broken, Runtime()).manifest.summary
    assert summary["n_eval_tokens"] == N_TRAIN * (TOKENS - 1)
    with pytest.raises(UserError, match="not finite"):
        _attempt(store, config_of(n_steps=5), broken, Runtime())


def test_a_diverging_loss_keeps_the_last_checkpoint(store: Store, inputs: dict[str, Artifact]) -> None:
    config = config_of(lr=1e30, lr_warmup_steps=0)
    with pytest.raises(UserError, match=r"no longer a number after step \d+; set a lower lr \(now 1e\+30\)"):
        _attempt(store, config, inputs, Runtime(checkpoint_seconds=0))
    for folder in (store.root / "train").iterdir():
        checkpoint = Checkpoints(folder).latest()
        if checkpoint is not None:
            assert all(np.isfinite(array).all() for array in checkpoint.arrays.values())


def test_an_unknown_split_is_named(store: Store, inputs: dict[str, Artifact]) -> None:
    for settings in ({"split": "trian"}, {"eval_split": "trian"}):
        with pytest.raises(UserError, match=r"split `trian`.*`train`, `test`"):
            _attempt(store, config_of(**settings), inputs, Runtime())


def test_a_backbone_without_prefix_tokens_has_none_to_train_on(
    store: Store, inputs: dict[str, Artifact]
) -> None:
    bare = activations(store, values(), 5, 2, n_prefix_tokens=0)
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


def test_clipping_is_torch_s() -> None:
    for length in (0.5, 100.0):
        generator = torch.Generator().manual_seed(0)
        mine = {name: torch.zeros(n, 3) for name, n in (("a", 5), ("b", 2))}
        theirs = [torch.zeros_like(tensor).requires_grad_() for tensor in mine.values()]
        for tensor, other in zip(mine.values(), theirs, strict=True):
            tensor.grad = torch.randn(tensor.shape, generator=generator)
            other.grad = tensor.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(theirs, length)
        assert clip_(mine, length) == pytest.approx(norm.item())
        for tensor, other in zip(mine.values(), theirs, strict=True):
            torch.testing.assert_close(tensor.grad, other.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scaled_input_is_folded_back(store: Store, inputs: dict[str, Artifact], kind: str) -> None:
    stream = Stream(Activations(inputs["activations"]), range(50), 40, 0)
    x = stream.batch(0).to_float32()
    out = Builder(Artifact("train", "0" * 64, store.root / kind))
    trainee = Trainee.begin(config_of(kind, input_norm="expected_norm"), out, x, 6, ALONE)
    assert (x * trainee.scale).norm(dim=1).mean().item() == pytest.approx(math.sqrt(WIDTH))
    for _ in range(3):
        trainee.take_step(x, torch.zeros(len(x), dtype=torch.int64))
    # Before the last update is normalised away: rows of length 1 for both.
    inner, outer = trainee.objective.sae().with_unit_decoder(), trainee.sae()
    expected = (inner.encode(x * trainee.scale) @ inner.W_dec + inner.b_dec) / trainee.scale
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


def test_reconstruction_in_closed_form() -> None:
    x = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 1.0]])
    x_hat = torch.tensor([[3.0, 3.0], [6.0, 9.0], [2.0, 1.0]])
    found = Reconstruction(2)
    found.add(x[:1], x_hat[:1])
    found.add(x[1:], x_hat[1:])
    variance = (9 + 36 + 0) - 27 / 9 * 9 + (16 + 64 + 1) - 13**2 / 3
    assert found.explained_variance == pytest.approx(1 - 6 / variance)
    assert found.explained_variance_uncentred == pytest.approx(1 - 6 / (25 + 100 + 1))
    assert found.fvu == pytest.approx(6 / variance)
    assert found.mse == pytest.approx(6 / 3 / 2)
    assert found.mse_per_norm == pytest.approx((1 / 5 + 1 / 10 + 4 / 1) / 3 / 2)
    cosines = [21 / (5 * math.sqrt(18)), 108 / (10 * math.sqrt(117)), 1 / math.sqrt(5)]
    assert found.cosine == pytest.approx(sum(cosines) / 3)


def test_bytes_are_predicted_from_the_width(store: Store, inputs: dict[str, Artifact]) -> None:
    predict = train.STAGE.predict_bytes
    assert predict is not None
    assert predict(config_of(), {"activations": None, "images": None}) is None
    done = _attempt(store, config_of(n_steps=2), inputs, Runtime())
    predicted = predict(config_of(), inputs)
    assert predicted is not None
    assert predicted > (done.path / "sae.safetensors").stat().st_size - 1000
