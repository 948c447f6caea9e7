"""Which latents a selection takes first, and the intervals of random ones."""

from __future__ import annotations

import numpy as np
import pytest

from patchsae.pipeline.evaluations.intervals import over_seeds, wilson_interval
from patchsae.pipeline.evaluations.statistics.rankings import class_ranking, selective_ranking
from patchsae.pipeline.evaluations.statistics.tables import CLASS_LATENTS
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.store import Store
from tests.support.sae_inputs import commit

N_CLASSES, N_LATENTS = 5, 40


@pytest.fixture
def counts() -> np.ndarray:
    """Some latents are frequent in every class, some in one, and some never fire: [C, S]."""
    generator = np.random.default_rng(4)
    found = generator.integers(0, 20, (N_CLASSES, N_LATENTS))
    found[:, :8] += 200
    for c in range(N_CLASSES):
        found[c, 8 + 3 * c : 11 + 3 * c] += 100
    found[:, 35:] = 0
    return found


@pytest.fixture
def statistics(store: Store, counts: np.ndarray) -> Artifact:
    def fill(out: Builder) -> None:
        label, latent = np.nonzero(counts)
        n = counts[label, latent]
        columns = {"class": label, "latent": latent, "n_tokens": n, "n_images": n, "mean_activation": n / 7}
        out.write_table(CLASS_LATENTS, columns)

    return commit(store, "statistics", fill)


def test_selective_latents_are_those_of_the_formula(statistics: Artifact, counts: np.ndarray) -> None:
    total = counts.sum(0)
    found = selective_ranking(statistics, N_LATENTS, N_CLASSES, N_LATENTS, total)
    for c in range(N_CLASSES):
        scores = [
            counts[c, s] * (counts[c, s] / total[s] - 1 / N_CLASSES) if total[s] else 0.0
            for s in range(N_LATENTS)
        ]
        assert found[c].tolist() == sorted(range(N_LATENTS), key=lambda s: (-scores[s], s))
        assert set(found[c, :3].tolist()) == {8 + 3 * c, 9 + 3 * c, 10 + 3 * c}
    assert selective_ranking(statistics, N_LATENTS, N_CLASSES, 7, total).tolist() == found[:, :7].tolist()


def test_classes_share_fewer_selective_latents(statistics: Artifact, counts: np.ndarray) -> None:
    def shared(ranking: np.ndarray) -> float:
        pairs = [(a, b) for a in range(N_CLASSES) for b in range(a)]
        return float(np.mean([len(set(ranking[a]) & set(ranking[b])) for a, b in pairs]))

    selective = selective_ranking(statistics, N_LATENTS, N_CLASSES, 8, counts.sum(0))
    assert shared(selective) < 3 < 7 < shared(class_ranking(statistics, N_LATENTS, N_CLASSES, 8))


def _simulated(generator: np.random.Generator, n_seeds: int, n_images: int, spread: float) -> np.ndarray:
    """Correct images of each seed, [S]: images differ in difficulty, seeds in what they take away."""
    seed = generator.normal(0, spread, (n_seeds, 1))
    image = generator.normal(0, 1, (1, n_images))
    return (seed + image + generator.logistic(0, 1, (n_seeds, n_images)) > -0.4).sum(1)


@pytest.mark.parametrize("spread", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("n_seeds", [3, 10])
def test_intervals_cover_what_is_expected_of_a_random_selection(n_seeds: int, spread: float) -> None:
    generator, n_images, n_runs = np.random.default_rng(7), 400, 400
    n = np.array(n_images)
    truth = _simulated(generator, 2000, 500, spread).mean() / 500
    covered, of_mean, naive = [], [], []
    for _ in range(n_runs):
        n_correct = _simulated(generator, n_seeds, n_images, spread)
        found = over_seeds(n_correct, n)
        covered.append(found.low[0] <= truth <= found.high[0])
        of_mean.append(found.mean_low <= truth <= found.mean_high)
        low, high = wilson_interval(n_correct, n)
        naive.append(low[0] <= truth <= high[0])
    assert np.mean(covered) > 0.93
    assert np.mean(of_mean) > (0.93 if n_seeds > 3 else 0.9)
    if spread == 1.0:
        # The intervals of the images alone say nothing of the seeds.
        assert np.mean(naive) < 0.5


def test_intervals_of_the_reported_seeds_overlap() -> None:
    # k = 500 on, three seeds of 1,000 images: the Wilson intervals are far apart.
    n_correct, n = np.array([356, 522, 521]), np.array(1000)
    low, high = wilson_interval(n_correct, n)
    assert high[0] < low[1]
    found = over_seeds(n_correct, n)
    assert found.high[0] > found.low[1] and found.low[1] < found.mean < found.high[0]
    assert found.mean == pytest.approx(0.4663, abs=1e-4)
    assert 0 < found.mean_low < found.mean < found.mean_high < 1
    variance = found.mean * (1 - found.mean) / 1000 + np.var(n_correct / n, ddof=1)
    # Far from 0 and 1 and with many degrees of freedom it would be 1.96 standard deviations; two degrees are more.
    assert (found.high[1] - found.low[1]) / 2 > 1.96 * np.sqrt(variance) * 0.9


def test_intervals_at_the_ends_and_of_one_seed() -> None:
    n = np.array([50, 50, 80])
    same = over_seeds(np.array([[0, 50, 20]] * 4), n)
    low, high = wilson_interval(np.array([0, 50, 20]), n)
    for s in range(4):
        np.testing.assert_allclose(same.low[s], low)
        np.testing.assert_allclose(same.high[s], high)
    assert same.mean_low[0] == 0 and same.mean_high[1] == 1
    one = over_seeds(np.array([[7, 30, 20]]), n)
    low, high = wilson_interval(np.array([7, 30, 20]), n)
    np.testing.assert_allclose(one.low[0], low)
    np.testing.assert_allclose(one.mean_high, high)
    mixed = over_seeds(np.array([[0, 50], [50, 50]]), np.array([50, 50]))
    assert mixed.low[0, 0] == 0 and 0 <= mixed.mean_low[0] < 0.5 < mixed.mean_high[0] <= 1


def test_an_interval_contains_its_accuracy_and_stays_within_0_and_1() -> None:
    generator = np.random.default_rng(0)
    for n_seeds in (1, 2, 10):
        n = generator.integers(1, 60, 30)
        n_correct = generator.integers(0, n + 1, (n_seeds, 30))
        found = over_seeds(n_correct, n)
        assert (found.low >= 0).all() and (found.high <= 1).all()
        assert (found.low <= n_correct / n + 1e-12).all() and (n_correct / n <= found.high + 1e-12).all()
