"""ClassGaussianMixture: scikit-learn's conventions, and whose arrays it takes."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from shardsieve_kernels._arrays import as_like, as_plain
from shardsieve_kernels.class_gmm import ClassGaussianMixture, ClassStatus, class_gmm
from shardsieve_kernels.testing import GMM_CASES, gmm_inputs

CASES = {case.name: case for case in GMM_CASES}
LOSSES_N, LABELS_N = gmm_inputs(CASES["odd-sizes"])


class Interface:
    """An array of some other library: only the protocol, none of NumPy's methods."""

    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


class Dlpack:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


KINDS = {"torch": torch.from_numpy, "array-interface": Interface, "dlpack": Dlpack}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_other_arrays_are_read_where_they_lie(kind):
    losses_N = LOSSES_N.copy()
    seen_N = as_plain(kind(losses_N))
    assert isinstance(seen_N, np.ndarray)
    assert np.shares_memory(seen_N, losses_N)
    assert seen_N.ctypes.data == losses_N.ctypes.data
    losses_N[0] = 123.0
    assert seen_N[0] == 123.0


def test_results_for_torch_share_the_memory_of_numpy():
    result_N = np.arange(3.0)
    tensor = as_like(result_N, torch.zeros(1))
    assert tensor.data_ptr() == result_N.ctypes.data
    assert as_like(result_N, LOSSES_N) is result_N


def test_what_is_no_array_is_left_for_the_checks():
    assert as_plain([1.0]) == [1.0]
    with pytest.raises(TypeError, match="losses must be a NumPy array, found list"):
        ClassGaussianMixture(backend="cpu").fit([1.0], LABELS_N)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_the_op_takes_other_arrays(kind, any_backend):
    want = class_gmm(LOSSES_N, LABELS_N, 4, backend=any_backend)
    got = class_gmm(kind(LOSSES_N), kind(LABELS_N), 4, backend=any_backend)
    for field in want._fields:
        assert getattr(got, field).tobytes() == getattr(want, field).tobytes(), field


@pytest.mark.parametrize("preset", ["converged", "sklearn-compatible"])
def test_attributes_and_posteriors_are_those_of_the_op(preset, any_backend):
    want = class_gmm(LOSSES_N, LABELS_N, 4, preset=preset, backend=any_backend)
    mixture = ClassGaussianMixture(preset=preset, backend=any_backend).fit(LOSSES_N, LABELS_N)
    assert mixture.backend_ == any_backend
    assert mixture.classes_.tolist() == [0, 1, 2, 3]
    for name, field in {
        "weights_": "weights_K2", "means_": "means_K2", "variances_": "variances_K2",
        "converged_": "converged_K", "n_iter_": "n_iter_K", "status_": "status_K",
        "bic_gain_": "bic_gain_K", "separation_": "separation_K",
    }.items():  # fmt: skip
        assert np.array_equal(getattr(mixture, name), getattr(want, field)), name
    p_N2 = mixture.predict_proba(LOSSES_N, LABELS_N)
    assert p_N2.shape == (len(LOSSES_N), 2)
    np.testing.assert_allclose(p_N2[:, 0], want.p_clean_N, rtol=0, atol=1e-12)
    np.testing.assert_allclose(p_N2.sum(axis=1), 1.0, rtol=0, atol=1e-15)
    assert np.array_equal(mixture.predict(LOSSES_N, LABELS_N), p_N2[:, 0] < 0.5)
    again_N = ClassGaussianMixture(preset=preset, backend=any_backend).fit_predict(
        LOSSES_N, LABELS_N
    )
    assert np.array_equal(again_N, p_N2[:, 0] < 0.5)


def test_torch_in_torch_out():
    losses_N, labels_N = torch.from_numpy(LOSSES_N), torch.from_numpy(LABELS_N)
    losses_N = losses_N.clone().requires_grad_()
    mixture = ClassGaussianMixture(backend="cpu").fit(losses_N, labels_N)
    want = ClassGaussianMixture(backend="cpu").fit(LOSSES_N, LABELS_N)
    got_N2 = mixture.predict_proba(losses_N, labels_N)
    for got, name in ((mixture.means_, "means_"), (mixture.converged_, "converged_")):
        assert isinstance(got, torch.Tensor) and not got.requires_grad
        assert np.array_equal(got.numpy(), getattr(want, name))
    assert isinstance(got_N2, torch.Tensor) and got_N2.dtype == torch.float64
    assert np.array_equal(got_N2.numpy(), want.predict_proba(LOSSES_N, LABELS_N))
    assert isinstance(mixture.predict(losses_N, labels_N), torch.Tensor)


def test_gpu_arrays_in_gpu_arrays_out(request):
    from shardsieve_kernels import why_unavailable

    reason = why_unavailable("gpu")
    if reason is not None:
        assert "gpu" not in request.config.getoption("--backends").split(","), reason
        pytest.skip(reason)
    import cupy as cp

    losses_N, labels_N = cp.asarray(LOSSES_N), cp.asarray(LABELS_N)
    want_N2 = ClassGaussianMixture(backend="cpu").fit(LOSSES_N, LABELS_N)
    want_N2 = want_N2.predict_proba(LOSSES_N, LABELS_N)
    mixture = ClassGaussianMixture(backend="gpu").fit(losses_N, labels_N)
    got_N2 = mixture.predict_proba(losses_N, labels_N)
    assert isinstance(got_N2, cp.ndarray) and isinstance(mixture.means_, cp.ndarray)
    np.testing.assert_allclose(got_N2.get(), want_N2, rtol=0, atol=1e-6)
    tensor_N = torch.as_tensor(losses_N, device="cuda")
    assert as_plain(tensor_N).data.ptr == losses_N.data.ptr
    mixture = ClassGaussianMixture(backend="gpu").fit(tensor_N, labels_N)
    assert mixture.means_.is_cuda and mixture.converged_.is_cuda
    assert np.array_equal(mixture.predict_proba(tensor_N, labels_N).cpu().numpy(), got_N2.get())


@pytest.mark.parametrize("names", [[-3, 7, 8, 1000], [5, 10**12, 10**13, 10**14]])
def test_labels_may_be_any_numbers(names):
    named_N = np.array(names)[LABELS_N]
    want = ClassGaussianMixture(backend="cpu").fit(LOSSES_N, LABELS_N)
    got = ClassGaussianMixture(backend="cpu").fit(LOSSES_N, named_N)
    assert got.classes_.tolist() == names
    assert np.array_equal(got.means_, want.means_)
    want_N2 = want.predict_proba(LOSSES_N, LABELS_N)
    assert np.array_equal(got.predict_proba(LOSSES_N, named_N), want_N2)


def test_a_class_not_fitted_is_all_clean():
    losses_N = np.concatenate([LOSSES_N, [9.0, 1.0]])
    labels_N = np.concatenate([LABELS_N, [4, 4]])
    mixture = ClassGaussianMixture(backend="cpu").fit(losses_N, labels_N)
    assert mixture.status_[4] == ClassStatus.TOO_FEW
    assert np.isnan(mixture.means_[4]).all()
    few_2 = np.array([4, 4])
    assert mixture.predict_proba(np.array([0.0, 99.0]), few_2).tolist() == [[1.0, 0.0]] * 2
    assert mixture.predict(np.array([0.0, 99.0]), few_2).tolist() == [0, 0]


def test_parameters_follow_scikit_learn():
    mixture = ClassGaussianMixture(preset="sklearn-compatible", min_samples=30, reg_covar=1e-3)
    assert mixture.get_params() == {
        "preset": "sklearn-compatible", "min_samples": 30, "reg_covar": 1e-3, "backend": "auto",
    }  # fmt: skip
    other = clone(mixture).set_params(backend="cpu", min_samples=2)
    assert other.fit(LOSSES_N, LABELS_N) is other
    assert not hasattr(mixture, "means_")
    with pytest.raises(ValueError, match="Invalid parameter"):
        mixture.set_params(tol=1)


def test_parameters_reach_the_op():
    mixture = ClassGaussianMixture(min_samples=22, reg_covar=0.01, backend="cpu")
    mixture.fit(LOSSES_N, LABELS_N)
    want = class_gmm(LOSSES_N, LABELS_N, 4, min_samples=22, reg_covar=0.01, backend="cpu")
    assert np.array_equal(mixture.variances_, want.variances_K2, equal_nan=True)
    assert mixture.status_[0] == ClassStatus.TOO_FEW


def test_misuse_is_named():
    mixture = ClassGaussianMixture(backend="cpu")
    with pytest.raises(NotFittedError, match="call fit first"):
        mixture.predict(LOSSES_N, LABELS_N)
    with pytest.raises(ValueError, match="losses must hold at least one sample"):
        mixture.fit(LOSSES_N[:0], LABELS_N[:0])
    mixture.fit(LOSSES_N, LABELS_N)
    with pytest.raises(ValueError, match="4 fitted classes, found 4 at row 1"):
        mixture.predict(np.ones(2), np.array([3, 4]))
    with pytest.raises(ValueError, match=r"losses must be finite.*found nan at row 1"):
        mixture.predict(np.array([1.0, np.nan]), np.array([3, 3]))


def test_the_op_alone_does_not_import_scikit_learn():
    code = "import sys, shardsieve_kernels.class_gmm; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
