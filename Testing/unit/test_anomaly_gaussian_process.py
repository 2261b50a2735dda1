"""Gaussian processes of many values at once: against the closed form, scikit-learn, and simulated cohorts."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from MLILib.anomaly import gaussian_process
from MLILib.anomaly.gaussian_process import Fitted


def _cohort(n: int, values: int, seed: int, noise: float | np.ndarray = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Standardised ages (n, 1), and values (n, values) that are smooth in age, of any scale and offset."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1.7, 1.7, (n, 1))
    kernel = np.exp(-0.5 * np.square(x - x.T)) + 1e-9 * np.eye(n)
    smooth = np.linalg.cholesky(kernel) @ rng.normal(size=(n, values))
    return x, 500 + 20 * (smooth + noise * rng.normal(size=(n, values)))


def _parameters(fitted: Fitted, value: int) -> tuple[np.ndarray, float, float]:
    """Length scales, signal and noise variance of one value."""
    lengths = next(g.lengths for g in fitted.groups if value in g.members)
    return lengths, float(fitted.signal[value]), float(fitted.noise[value])


def _kernel(a: np.ndarray, b: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * np.square((a[:, None] - b[None]) / lengths).sum(2))


def _closed_form(
    x: np.ndarray, y: np.ndarray, new: np.ndarray, parameters: tuple[np.ndarray, float, float], mean: float
) -> tuple[float, float]:
    """Rasmussen and Williams (2006), equations 2.25 and 2.26, plus the noise of a new measurement."""
    lengths, signal, noise = parameters
    covariance = signal * _kernel(x, x, lengths) + noise * np.eye(len(x))
    near = signal * _kernel(new[None], x, lengths)[0]
    expected = mean + near @ np.linalg.solve(covariance, y - mean)
    return expected, signal + noise - near @ np.linalg.solve(covariance, near)


@pytest.mark.parametrize("categories", [False, True])
def test_mean_variance_and_z_are_the_closed_form(categories: bool) -> None:
    x, y = _cohort(45, 30, 0, noise=np.geomspace(0.05, 5, 30))
    if categories:
        sex = np.random.default_rng(1).integers(0, 2, 45)
        x = np.column_stack([x, np.sqrt(0.5) * np.eye(2)[sex]])
        y = y + 30 * sex[:, None]
    fitted, _ = gaussian_process.fit(x, y, categories=[False, True, True] if categories else None)
    for new in (x[3], x[5] + 0.1, x[0] * 3):
        mean, variance = fitted.predict(new)
        for value in range(30):
            expected = _closed_form(x, y[:, value], new, _parameters(fitted, value), y[:, value].mean())
            assert mean[value] == pytest.approx(expected[0], rel=1e-6)
            assert variance[value] == pytest.approx(expected[1], rel=1e-6)
            z = (y[7, value] - expected[0]) / np.sqrt(expected[1])
            assert (y[7, value] - mean[value]) / np.sqrt(variance[value]) == pytest.approx(z, abs=1e-6)


def test_as_scikit_learn_with_the_same_kernel() -> None:
    regression = pytest.importorskip("sklearn.gaussian_process", reason="scikit-learn is the oracle")
    kernels = regression.kernels
    x, y = _cohort(40, 6, 2)
    fitted, _ = gaussian_process.fit(x, y)
    new = np.array([[0.3], [2.5]])
    for value in range(6):
        lengths, signal, noise = _parameters(fitted, value)
        kernel = kernels.ConstantKernel(signal) * kernels.RBF(lengths) + kernels.WhiteKernel(noise)
        centred = y[:, value] - y[:, value].mean()
        oracle = regression.GaussianProcessRegressor(kernel, alpha=0.0, optimizer=None).fit(x, centred)
        mean, deviation = oracle.predict(new, return_std=True)
        for row in range(2):
            ours = fitted.predict(new[row])
            assert ours[0][value] - y[:, value].mean() == pytest.approx(mean[row], abs=1e-6)
            assert np.sqrt(ours[1][value]) == pytest.approx(deviation[row], rel=1e-6)
        likelihood = oracle.log_marginal_likelihood(oracle.kernel_.theta)
        assert fitted.likelihood[value] == pytest.approx(likelihood, abs=1e-6)


def test_no_hyperparameters_are_much_likelier() -> None:
    regression = pytest.importorskip("sklearn.gaussian_process", reason="scikit-learn is the oracle")
    kernels = regression.kernels
    x, y = _cohort(60, 8, 3, noise=np.geomspace(0.1, 3, 8))
    fitted, _ = gaussian_process.fit(x, y)
    for value in range(8):
        centred = y[:, value] - y[:, value].mean()
        scale = centred.std()
        signal, noise = kernels.ConstantKernel(1, (1e-4, 1e4)), kernels.WhiteKernel(0.5, (1e-6, 1e3))
        kernel = signal * kernels.RBF(1, (0.35, 12)) + noise
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values at a bound
            oracle = regression.GaussianProcessRegressor(kernel, n_restarts_optimizer=1, random_state=0)
            best = oracle.fit(x, centred / scale).log_marginal_likelihood_value_ - len(x) * np.log(scale)
        assert best - 0.2 < fitted.likelihood[value] < best + 1e-3


def test_leaving_out_is_what_fitting_without_gives() -> None:
    x, y = _cohort(30, 5, 4, noise=0.5)
    fitted, left = gaussian_process.fit(x, y)
    error, inside = np.zeros(5), []
    for i in range(30):
        rest = np.delete(np.arange(30), i)
        for value in range(5):
            mean, variance = _closed_form(
                x[rest], y[rest, value], x[i], _parameters(fitted, value), y[rest, value].mean()
            )
            error[value] += (y[i, value] - mean) ** 2
            inside.append(abs(y[i, value] - mean) < 1.96 * np.sqrt(variance))
    np.testing.assert_allclose(left.error, error, rtol=1e-6)
    assert left.share_below(1.96) == pytest.approx(np.mean(inside))
    assert left.count == 150
    others = np.array([[y[np.arange(30) != i, v].mean() for v in range(5)] for i in range(30)])
    np.testing.assert_allclose(left.spread, np.square(y - others).sum(0), rtol=1e-9)
    np.testing.assert_allclose(left.explained(), 1 - error / np.square(y - others).sum(0), rtol=1e-6)


def test_95_percent_of_new_subjects_lie_within_1_96() -> None:
    """20 cohorts of 100 subjects, 60 values each, 30 new subjects: 36,000 z-scores."""
    inside, shares = [], []
    for seed in range(20):
        x, y = _cohort(130, 60, 10 + seed, noise=np.repeat([0.3, 1.0, 4.0], 20))
        fitted, left = gaussian_process.fit(x[:100], y[:100])
        shares.append(left.share_below(1.96))
        for k in range(100, 130):
            mean, variance = fitted.predict(x[k])
            inside.append(np.abs(y[k] - mean) < 1.96 * np.sqrt(variance))
    assert np.mean(inside) == pytest.approx(0.95, abs=0.01)
    assert np.mean(shares) == pytest.approx(0.95, abs=0.01)


def test_blocks_and_files_change_nothing(tmp_path: Path) -> None:
    x, y = _cohort(30, 50, 5)
    y = y.astype(np.float32)
    np.save(tmp_path / "values.npy", y)
    whole, left = gaussian_process.fit(x, y)
    parts, again = gaussian_process.fit(x, np.load(tmp_path / "values.npy", mmap_mode="r"), block=7)
    for a, b in zip(whole.predict([0.2]), parts.predict([0.2]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    np.testing.assert_array_equal(left.histogram, again.histogram)
    small, _ = gaussian_process.fit(x, y, store=np.float32)
    np.testing.assert_allclose(small.predict([0.2])[0], whole.predict([0.2])[0], rtol=1e-6)


def test_what_never_changes_has_no_spread() -> None:
    x, y = _cohort(20, 3, 6)
    y[:, 1] = 7.0
    fitted, left = gaussian_process.fit(x, y)
    mean, variance = fitted.predict([0.0])
    assert (mean[1], variance[1]) == (7.0, 0.0)
    assert (variance[[0, 2]] > 0).all()
    assert left.count == 40
    assert left.explained()[1] == 0.0


def test_far_from_all_subjects_nothing_is_known() -> None:
    x, y = _cohort(40, 4, 7, noise=0.2)
    fitted, _ = gaussian_process.fit(x, y)
    mean, variance = fitted.predict([500.0])
    np.testing.assert_allclose(mean, y.mean(0))
    np.testing.assert_allclose(variance, fitted.signal + fitted.noise)


def test_covariates_explain_what_they_cause_and_no_noise() -> None:
    x, y = _cohort(80, 40, 8, noise=0.3)
    caused = gaussian_process.fit(x, y)[1].explained()
    chance = gaussian_process.fit(x, np.random.default_rng(9).normal(size=(80, 40)))[1].explained()
    assert np.median(caused) > 0.7
    assert abs(np.median(chance)) < 0.05
