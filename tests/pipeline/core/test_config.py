from __future__ import annotations

from typing import Annotated

from patchsae.pipeline.core.config import INLINE, Config, HashedUnless, Unhashed


class Inner(Config):
    lr: float = 0.1


class Before(Config):
    k: int = 5
    where: Annotated[str, Unhashed("a digest covers it")] = "here"
    inner: Inner = Inner()
    inline: Annotated[Inner, INLINE] = Inner()


class After(Before):
    side: Annotated[str, HashedUnless("short")] = "short"
    added: Annotated[Inner, HashedUnless(Inner())] = Inner(lr=0.2)


def test_the_annotation_of_a_field_decides_what_of_it_is_hashed() -> None:
    assert Before(where="there").key_config() == {"k": 5, "inner": {"lr": 0.1}, "lr": 0.1}


def test_a_field_of_a_later_version_leaves_keys_as_they_were_until_it_changes_something() -> None:
    assert After(added=Inner()).key_config() == Before().key_config()
    assert After(side="long").key_config() == Before().key_config() | {"side": "long", "added": {"lr": 0.2}}
