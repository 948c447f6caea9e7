"""Small texts that stand for something huge, deep or broken, in a file and in `--set`, are one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchsae.pipeline.experiment import bounded_yaml
from patchsae.pipeline.experiment.bounded_yaml import MAX_DEPTH, MAX_NODES, NotYaml, n_nodes, read
from patchsae.pipeline.experiment.experiment import PRESETS, load, parse
from patchsae.storage.errors import UserError

DEMO = (PRESETS / "demo.yaml").read_text()


def laughs(levels: int, line: str = "b{n}: &a{n} [{aliases}]") -> str:
    """Each line repeats the one before nine times: 9^levels values."""
    lines = ["a: &a0 {x: 1}"]
    for n in range(1, levels + 1):
        lines.append(line.format(n=n, aliases=", ".join([f"*a{n - 1}"] * 9)))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs(30), f"has more than {MAX_NODES:,} values, with every alias written out"),
        (laughs(30, "b{n}: &a{n} {{<<: [{aliases}]}}"), "more than"),
        ("a: [" + "1, " * MAX_NODES + "1]", "has more than"),
        ("[" * 5000, f"is nested more than {MAX_DEPTH} levels deep"),
        ("{a: " * 5000, "is nested more than"),
        ("- " * 5000, "is nested more than"),
        ("a: &a [*a]", r"the alias `\*a` is inside what it repeats"),
        ("a: &a {b: {<<: *a}}", r"the alias `\*a` is inside what it repeats"),
        ("\n".join(f"- &a{n} [{f'*a{n - 1}' if n else 1}]" for n in range(200)), "is nested more than"),
        ("name: 2001-99-99", r"not valid YAML: a value is not of its type \(month must be in 1\.\.12\)"),
        ("name: !!bool x", "not valid YAML: a value is not of its type"),
        ("name: !!float ''", "not valid YAML: a value is not of its type"),
        ("name: 0x" + "f" * 5000, r"a whole number of 20,000 bits"),
        ("name: " + "9" * 5000, "not valid YAML: a value is not of its type"),
        ("name: a\0b", "not valid YAML: unacceptable character"),
        ("name: !!python/object/apply:os.getcwd []", "not valid YAML at line 1: could not determine"),
    ],
)  # fmt: skip
def test_a_hostile_text_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^theirs.yaml: .*{message}") as caught:
        parse(text, "theirs.yaml")
    assert "\n" not in str(caught.value)


def test_what_an_alias_repeats_is_counted_as_it_would_be_written() -> None:
    def text(n: int) -> str:
        return f"a: &a [{'1, ' * 99}1]\nb: [{', '.join(['*a'] * n)}]"

    value = read(text(900), "")
    assert n_nodes(value) == 1 + 2 + 101 + 1 + 900 * 101
    # Nothing is built of what is refused: 9^30 values would end no test.
    with pytest.raises(UserError):
        read(text(1000), "")


def test_nesting_up_to_the_bound_is_read() -> None:
    value = read("[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2), "")
    assert isinstance(value, list)


def test_an_alias_shares_nothing_with_what_it_repeats() -> None:
    text = DEMO.replace(
        "saes:\n",
        "saes:\n  first: &sae {kind: topk, dataset: shapes, backbone: shapesclip}\n  second: *sae\n",
    )
    saes = parse(text, "", ["saes.first.lr=0.5"]).saes
    assert saes["first"].lr == 0.5  # type: ignore[attr-defined]
    assert saes["second"].lr != 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[" * 5000, "^--set train.lr: is nested more than"),
        ("[&a [1, 1], &b [*a, *a], " + ", ".join(["*b"] * 20_000) + "]", "^--set train.lr: has more than"),
        ("0x" + "f" * 5000, "`saes.relu.lr`"),
        ("2001-99-99", "`saes.relu.lr` is '2001-99-99'"),
    ],
    ids=["deep", "many", "digits", "date"],
)
def test_a_hostile_override_is_one_sentence(value: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(DEMO, "demo", [f"train.lr={value}"])
    assert "\n" not in str(caught.value)


def test_a_path_of_many_steps_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"`datasets\.a\.kind` is missing"):
        parse(DEMO, "demo", ["datasets." + "a." * 3000 + "b=1"])


def test_text_that_is_no_yaml_is_a_text() -> None:
    assert parse(DEMO, "demo", ["description=2001-99-99: ["]).description == "2001-99-99: ["
    with pytest.raises(NotYaml, match=r"^not valid YAML at line 1"):
        read("[", "")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    with path.open("w") as file:
        file.write(DEMO)
        file.truncate(bounded_yaml.MAX_BYTES + 1)
    with pytest.raises(UserError, match=r"theirs\.yaml: has more than 10,000,000 bytes"):
        load(str(path))
