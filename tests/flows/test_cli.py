from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from patchsae.flows.cli.app import app
from patchsae.pipeline.core.machine import Machine
from patchsae.pipeline.core.prediction import Probe
from patchsae.pipeline.shapes.world import SPLITS
from patchsae.storage.records import ExperimentRecord, RecordedNode
from patchsae.storage.store import Store
from tests.support import small_run
from tests.support.command import patchsae, sentence

ADDRESSES = [
    "index/digits",
    "weights/tiny",
    "extract/digits-tiny",
    "train/relu",
    "statistics/statistics",
    "classifier/digits-tiny-dataset",
    "reconstruction/relu-test",
    "frontier/frontier",
    "remapping/remapping",
    "matching/matching",
    "gallery/gallery",
    "masking/masking",
]


@pytest.fixture
def full_store(small_store: Store, tmp_path: Path) -> Store:
    """A store that may be written to, in which the small experiment is done."""
    return Store(shutil.copytree(small_store.root, tmp_path / "a store"))


@pytest.fixture
def small(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(small_run.EXPERIMENT.format(checkpoint=str(tiny_checkpoint)))
    return path


def test_help_explains_every_command() -> None:
    text = patchsae("--help").stdout
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        assert name in text
        assert command.callback.__doc__
        assert patchsae(name, "--help").exit_code == 0


# plan


def test_plan_runs_nothing(small: Path, tmp_path: Path) -> None:
    result = patchsae("plan", small, "--store", tmp_path / "nowhere", "--json")
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert [row["address"] for row in rows] == ADDRESSES
    assert [row["state"] for row in rows] == ["to run"] * len(ADDRESSES)
    assert [row["why"] for row in rows[:3]] == ["never run", "never run", "waits for index/digits"]
    extract = next(row for row in rows if row["address"] == "extract/digits-tiny")
    assert 1 <= extract["bytes"] / (1797 * 17 * 32 * 2) < 1.1
    assert all(row["bytes"] > 0 and row["seconds"] > 0 for row in rows)
    assert not (tmp_path / "nowhere").exists()


def test_plan_measures_nothing_where_nothing_is_to_be_done(
    small: Path, full_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(self: Machine, probe: Probe) -> float:
        raise AssertionError(f"measures {probe.name}")

    monkeypatch.setattr(Machine, "_of", measure)
    monkeypatch.setattr("os.urandom", lambda n: pytest.fail("data for a probe"))
    assert patchsae("plan", small, "--store", full_store.root).exit_code == 0


def test_plan_says_what_changed(small: Path, full_store: Store) -> None:
    result = patchsae("plan", small, "--store", full_store.root, "--set", "train.lr=1e-3")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if "/" in line}
    assert "cached" in lines["extract/digits-tiny"]
    assert "to run" in lines["train/relu"] and "lr: 0.0004 -> 0.001" in lines["train/relu"]
    assert "input sae changed" in lines["statistics/statistics"]
    assert f"{len(ADDRESSES)} stages: {len(ADDRESSES) - 8} cached, 8 to run" in result.stdout


def test_plan_of_a_damaged_artifact_names_the_file(small: Path, full_store: Store) -> None:
    sae = full_store.committed("train")[0].path / "sae.safetensors"
    sae.write_bytes(sae.read_bytes()[:-1])
    rows = json.loads(patchsae("plan", small, "--store", full_store.root, "--json").stdout)
    row = next(row for row in rows if row["address"] == "train/relu")
    assert row["state"] == "to run"
    assert str(sae) in row["why"] and "truncated" in row["why"]


def test_plan_that_does_not_fit_leaves_with_2(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "free_bytes", lambda self: 1000)
    result = patchsae("plan", small, "--store", tmp_path / "s")
    assert "extract/digits-tiny" in result.stdout
    assert "the run needs about" in sentence(result)


def test_plan_of_the_paper_works_without_its_data(tmp_path: Path) -> None:
    result = patchsae("plan", "imagenet-vit-b16", "--store", tmp_path / "s", "--json")
    assert result.exit_code == 1, result.output
    rows = json.loads(result.stdout)
    states = {row["address"].split("/")[0]: row["state"] for row in rows}
    assert states["index"] == states["train"] == states["masking"] == "blocked"
    assert next(row for row in rows if row["stage"] == "extract")["bytes"] >= 1_331_167 * 197 * 768 * 2


def test_plan_of_what_a_run_would_refuse_leaves_with_1_and_says_why(small: Path, tmp_path: Path) -> None:
    given = (small, "--store", tmp_path / "s", "--set", "train.n_latents=4", "--set", "saes.relu.kind=topk")
    planned = patchsae("plan", *given)
    assert planned.exit_code == 1
    why = "train/relu: k is 32, but the SAE has 4 latents; set a smaller k."
    assert f"blocked: {why} (and so" in planned.stdout
    assert planned.stdout.count("k is 32") == 1
    # A run says the same, with the same code, and starts nothing.
    assert sentence(patchsae("run", *given), exit_code=1) == why
    assert not (tmp_path / "s").exists()


# run, where nothing needs to be started


def test_run_with_nothing_to_do_starts_nothing(small: Path, full_store: Store) -> None:
    code = (
        "import sys, open_clip\n"
        "open_clip.add_model_config(sys.argv.pop(1))\n"
        "from patchsae.flows.cli.app import app\n"
        "try:\n    app(sys.argv[1:])\n"
        "except SystemExit as error:\n    assert not error.code\n"
        "assert 'prefect' not in sys.modules and 'distributed' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, small_run.MODELS, "run", str(small), "--store", str(full_store.root)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Nothing to do: all {len(ADDRESSES)} stages of small are in {full_store.root}.\n"


@pytest.mark.parametrize(
    ("option", "value"), [("--device", "gpu"), ("--log", "tensorbord"), ("--dask", "lokal")]
)
def test_wrong_resources_are_refused_when_everything_is_cached(
    option: str, value: str, small: Path, full_store: Store
) -> None:
    assert sentence(patchsae("run", small, "--store", full_store.root, option, value)).startswith(
        f"{option} {value}: "
    )


def test_nothing_is_started_for_bad_input(small: Path, tmp_path: Path, full_store: Store) -> None:
    store = tmp_path / "s"
    text = small.read_text()

    def refuse(*arguments: str | Path) -> str:
        return sentence(patchsae("run", *arguments, "--store", store))

    assert refuse("dmeo") == "dmeo: neither a preset nor a YAML file; did you mean `demo`?"
    assert "did you mean `lr`" in refuse(small, "--set", "train.lrr=1")
    assert "did you mean `train`" in refuse(small, "--set", "trian.lr=1")
    assert "write FIELD=VALUE" in refuse(small, "--set", "train.lr")
    assert "did you mean `train`" in refuse(small, "--only", "trian")
    assert "did you mean `train/relu`" in refuse(small, "--rerun", "train/rellu")
    assert refuse(small, "--set", "train.lr=-1").startswith("--set train.lr=-1: `saes.relu.lr` is -1: ")
    unknown = refuse(small, "--set", "saes.relu.dataset=digit", "--set", "train.seed=1")
    assert unknown.startswith("--set saes.relu.dataset=digit: ") and "did you mean `digits`" in unknown
    small.write_text(text.replace("n_latents", "n_latnets"))
    assert "did you mean `n_latents`" in refuse(small)
    small.write_text(text.replace("dataset: digits", "dataset: digit"))
    assert "did you mean `digits`" in refuse(small)
    small.write_text(text + "  - [")
    assert "not valid YAML at line" in refuse(small)
    small.write_text(text.replace("{kind: digits}", "{kind: image_folder, root: /no/such/folder}"))
    blocked = patchsae("run", small, "--store", store)
    assert "/no/such/folder" in sentence(blocked, exit_code=1)
    small.write_text(text)
    assert refuse(small, "--only", "train").startswith("train/relu needs extract/digits-tiny")
    assert refuse("~nobody-here/x.yaml").startswith("~nobody-here/x.yaml: no such user has a home folder")
    unknown = patchsae("plan", small, "--store", "~nobody-here/s")
    assert sentence(unknown).startswith("~nobody-here/s: no such user has a home folder")
    planned = patchsae("plan", small, "--store", store, "--only", "train")
    assert sentence(planned).startswith("train/relu needs extract/digits-tiny")
    assert not store.exists()


def test_bad_stores(small: Path, tmp_path: Path) -> None:
    for command in (["status"], ["run", str(small)], ["query", "SELECT 1"], ["verify"], ["gc"]):
        assert "s3://bucket" in sentence(patchsae(*command, "--store", "s3://bucket"))
        assert "is a file" in sentence(patchsae(*command, "--store", small))


def test_a_binary_file_is_no_experiment(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert "cannot be read as YAML" in sentence(patchsae("plan", tiny_checkpoint, "--store", tmp_path / "s"))


def test_a_store_that_is_not_there_is_no_traceback(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert "cannot be read" in sentence(patchsae("gc", "--store", nowhere))
    assert "run an experiment first" in sentence(
        patchsae("query", "SELECT * FROM latents", "--store", nowhere)
    )
    assert "no device of that name" in sentence(
        patchsae("visaebench", "relu", "--store", nowhere, "--device", "gpu")
    )
    assert not nowhere.exists()


def test_a_store_that_cannot_be_written(small: Path) -> None:
    assert "nothing can be written" in sentence(patchsae("run", small, "--store", small / "store"))


def test_devices_are_checked_first(small: Path, tmp_path: Path) -> None:
    for device in ("gpu", "cuda:99"):
        result = patchsae("run", small, "--store", tmp_path / "s", "--device", device)
        assert sentence(result).startswith(f"--device {device}: ")


def test_dask_addresses_are_checked_first(small: Path, tmp_path: Path) -> None:
    for address in ("tcp://127.0.0.1:9", "lokal", "tcp://127.0.0.1", "tcp://127.0.0.1:many"):
        result = patchsae("run", small, "--store", tmp_path / "s", "--dask", address)
        assert sentence(result).startswith(f"--dask {address}: ")


# status, query, tables


def test_status_lists_artifacts(full_store: Store) -> None:
    (full_store.root / "train" / ("0" * 16)).mkdir()
    rows = json.loads(patchsae("status", "--store", full_store.root, "--json").stdout)
    assert {row["stage"] for row in rows} == {address.split("/")[0] for address in ADDRESSES}
    for row in rows:
        assert set(row) == {"stage", "key", "state", "path", "bytes", "summary", "names", "inputs", "config"}
        assert Path(row["path"]).is_dir()
    done, begun = sorted((row for row in rows if row["stage"] == "train"), key=lambda row: row["state"])
    assert (done["state"], begun["state"]) == ("committed", "partial")
    assert done["names"] == ["small: train/relu"] and begun["names"] == []
    assert done["summary"]["n_latents"] == 512 and done["bytes"] > 512 * 64 * 4 and len(done["key"]) == 64
    text = patchsae("status", "--store", full_store.root).stdout
    assert done["key"][:16] in text and f"{len(ADDRESSES) + 1} artifacts" in text


def test_status_of_an_empty_store_makes_no_folder(tmp_path: Path) -> None:
    assert json.loads(patchsae("status", "--store", tmp_path / "s", "--json").stdout) == []
    assert "nothing here yet" in patchsae("status", "--store", tmp_path / "s").stdout
    assert not (tmp_path / "s").exists()


def test_store_comes_from_the_environment(full_store: Store) -> None:
    result = CliRunner().invoke(app, ["status", "--json"], env={"PATCHSAE_STORE": str(full_store.root)})
    assert len(json.loads(result.stdout)) == len(ADDRESSES)


QUERY = "SELECT split, COUNT(*) AS n FROM images GROUP BY split ORDER BY split"


def test_query_formats(full_store: Store, tmp_path: Path) -> None:
    def query(*arguments: str | Path) -> Result:
        return patchsae("query", QUERY, "--store", full_store.root, *arguments)

    expected = pl.DataFrame({"split": ["test", "train"], "n": [359, 1438]})
    assert pl.read_csv(io.StringIO(query("--format", "csv").stdout)).equals(expected)
    assert json.loads(query("--format", "json").stdout) == expected.to_dicts()
    assert pl.read_parquet(io.BytesIO(query("--format", "parquet").stdout_bytes))["n"].to_list() == [
        359,
        1438,
    ]
    assert "train" in query().stdout
    path = tmp_path / "rows.parquet"
    assert query("--format", "parquet", "--output", path).stdout == ""
    assert pl.read_parquet(path)["split"].to_list() == ["test", "train"]


def test_the_suffix_of_the_file_tells_the_format(full_store: Store, tmp_path: Path) -> None:
    expected = [{"split": "test", "n": 359}, {"split": "train", "n": 1438}]
    readers = {
        "csv": pl.read_csv,
        "json": pl.read_json,
        "jsonl": pl.read_ndjson,
        "NDJSON": pl.read_ndjson,
        "parquet": pl.read_parquet,
    }
    for suffix, read in readers.items():
        path = tmp_path / f"rows.{suffix}"
        result = patchsae("query", QUERY, "--store", full_store.root, "--output", path)
        assert result.exit_code == 0 and result.stdout == "", result.output
        assert read(path).to_dicts() == expected, suffix
    odd = tmp_path / "rows.xls"
    assert "tells no format" in sentence(
        patchsae("query", QUERY, "--store", full_store.root, "--output", odd)
    )
    assert (
        patchsae("query", QUERY, "--store", full_store.root, "--output", odd, "--format", "csv").exit_code
        == 0
    )
    assert pl.read_csv(odd).to_dicts() == expected
    nowhere = tmp_path / "no" / "rows.csv"
    assert "cannot be written" in sentence(
        patchsae("query", QUERY, "--store", full_store.root, "--output", nowhere)
    )


def test_lists_fit_into_csv(full_store: Store) -> None:
    shown = patchsae(
        "query", "SELECT stage, names FROM artifacts", "--store", full_store.root, "--format", "csv"
    )
    assert {"stage": "train", "names": "small: train/relu"} in pl.read_csv(
        io.StringIO(shown.stdout)
    ).to_dicts()


def test_kinds_names_the_words_that_a_number_or_a_mapping_takes() -> None:
    fields = {
        kind: {
            field["name"]: field
            for field in json.loads(patchsae("kinds", kind, "--json").stdout)[0]["fields"]
        }
        for kind in ("topk", "shapes")
    }
    assert fields["topk"]["encoder_scale"]["type"] == "number, `live_latents` or `low_fvu`"
    assert all(f"`{split}`" in fields["shapes"]["splits"]["meaning"] for split in SPLITS)


def test_tables_can_be_listed_in_sql(full_store: Store) -> None:
    def rows(sql: str) -> list[dict[str, object]]:
        return json.loads(patchsae("query", sql, "--store", full_store.root, "--format", "json").stdout)

    assert {"artifacts", "latents", "masking"} <= {row["table"] for row in rows("show tables;")}
    columns = rows("DESCRIBE latents")
    assert "frequency" in {row["column"] for row in columns} and all(row["description"] for row in columns)
    types = {row["column"]: row["type"] for row in columns}
    assert (types["sae"], types["artifact"], types["frequency"]) == ("Categorical", "String", "Float64")
    shown = patchsae("query", "DESCRIBE latents", "--store", full_store.root).stdout
    assert max(len(str(row["description"])) for row in columns) > 100
    assert all(str(row["description"]) in shown for row in columns)
    assert "did you mean `latents`" in sentence(
        patchsae("query", "describe latnets", "--store", full_store.root)
    )


def test_query_joins_tables_and_the_store_itself(full_store: Store) -> None:
    sql = (
        "SELECT a.stage, COUNT(*) AS n FROM latents l JOIN artifacts a ON l.artifact = a.key "
        "WHERE a.state = 'committed' GROUP BY a.stage"
    )
    result = patchsae("query", sql, "--store", full_store.root, "--format", "json")
    assert json.loads(result.stdout) == [{"stage": "statistics", "n": 512}]


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT * FROM latnets", "no table `latnets` in this store; did you mean `latents`"),
        ("SELECT latnet FROM latents", "no column `latnet` in latents; did you mean `latent`"),
        ("SELECT qqq FROM masking", " more (`DESCRIBE masking` lists them)."),
        (
            "SELECT experiment FROM masking",
            "no column `experiment` in masking; name the experiment with the option `--exp",
        ),
        ("SELEC * FROM latents", "Expected"),
        ("SELECT no_such(latent) FROM latents", "no_such"),
        ("", "query: "),
    ],
)
def test_faulty_queries(full_store: Store, sql: str, says: str) -> None:
    assert says in sentence(patchsae("query", sql, "--store", full_store.root))


def test_tables_explains_every_column(full_store: Store) -> None:
    rows = json.loads(patchsae("tables", "--store", full_store.root, "--json").stdout)
    assert {"images", "latents", "latent_images", "class_latents", "masking", "training"} <= {
        row["table"] for row in rows
    }
    assert all(row["description"].endswith(".") for row in rows)


# verify, gc


def test_verify_names_a_flipped_byte_and_discards_it(full_store: Store, small: Path) -> None:
    assert patchsae("verify", "--store", full_store.root).exit_code == 0
    artifact = full_store.committed("extract")[0]
    shard = artifact.path / artifact.ledger.files(1)[0].path
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    result = patchsae("verify", "--store", full_store.root)
    assert result.exit_code == 1
    assert str(shard) in result.stdout and "--discard" in result.stderr
    n_parts = artifact.ledger.n_done()
    assert patchsae("verify", "--store", full_store.root, "--discard").exit_code == 0
    assert not artifact.is_committed
    assert artifact.ledger.n_done() == n_parts - 1
    rows = json.loads(patchsae("plan", small, "--store", full_store.root, "--json").stdout)
    assert [row["address"] for row in rows if row["state"] != "cached"] == ["extract/digits-tiny"]
    assert [row["state"] for row in rows if row["state"] != "cached"] == ["resumes"]


def test_verify_names_an_edited_manifest(full_store: Store) -> None:
    manifest = full_store.committed("train")[0].path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"n_latents": 512', '"n_latents": 513'))
    result = patchsae("verify", "--store", full_store.root)
    assert result.exit_code == 1
    assert str(manifest) in result.stdout and "edited" in result.stdout


def test_gc_takes_what_nothing_reaches(full_store: Store, small: Path) -> None:
    keys = {artifact.stage: artifact.key for artifact in full_store.committed()}
    nodes = {f"{s}/x": RecordedNode(s, k) for s, k in keys.items() if s != "masking"}
    full_store.records.forget("small")
    full_store.records.write("small", ExperimentRecord(nodes), newest=True)
    dry = patchsae("gc", "--store", full_store.root)
    assert keys["masking"][:16] in dry.stdout and "gc --delete" in dry.stdout
    assert len(full_store.committed()) == len(ADDRESSES)
    assert patchsae("gc", "--store", full_store.root, "--delete").exit_code == 0
    assert {artifact.stage for artifact in full_store.committed()} == keys.keys() - {"masking"}
    assert "nothing to delete" in patchsae("gc", "--store", full_store.root).stdout
    assert "small" in sentence(patchsae("gc", "--store", full_store.root, "--forget", "smal"))
    patchsae("gc", "--store", full_store.root, "--forget", "small", "--delete")
    assert full_store.committed() == []


def test_gc_leaves_what_is_being_built(full_store: Store) -> None:
    artifact = full_store.committed("train")[0]
    full_store.drop(artifact)
    full_store.records.forget("small")
    with full_store.building(artifact):
        result = patchsae("gc", "--store", full_store.root, "--delete")
    assert artifact.path.name not in result.stdout
    assert (artifact.path / "sae.safetensors").exists()
    assert [a.stage for a, _ in full_store.artifacts()] == ["train"]


def test_gc_leaves_what_is_being_read(full_store: Store) -> None:
    artifact = full_store.committed("train")[0]
    full_store.records.forget("small")
    with full_store.reading([artifact]):
        result = patchsae("gc", "--store", full_store.root, "--delete")
    assert f"train {artifact.path.name}: left alone" in result.stdout
    assert [a.stage for a in full_store.committed()] == ["train"]


def test_what_is_damaged_is_left_out_of_a_query_and_said(full_store: Store) -> None:
    table = full_store.committed("statistics")[0].path / "tables" / "latents.parquet"
    table.write_bytes(b"")
    result = patchsae("query", "SELECT COUNT(*) FROM masking", "--store", full_store.root)
    assert result.exit_code == 0
    assert result.stderr.startswith(f"patchsae: {table}: missing or truncated")
    assert len(result.stderr.splitlines()) == 1
    rows = json.loads(patchsae("status", "--store", full_store.root, "--json").stdout)
    assert [row["stage"] for row in rows if row["state"] == "damaged"] == ["statistics"]


def test_gc_says_which_earlier_versions_keep_something(full_store: Store) -> None:
    record = full_store.records.all()["small"]
    assert record.experiment is not None
    assert "earlier" not in patchsae("gc", "--store", full_store.root).stdout
    changed = ExperimentRecord(record.nodes, {**record.experiment, "description": "changed"})
    full_store.records.write("small", changed, newest=True)
    [earlier] = full_store.records.all().keys() - {"small"}
    assert f"earlier versions of experiments: {earlier};" in patchsae("gc", "--store", full_store.root).stdout
