"""Compiled and eager forms of a change: same numbers, one compilation for all batches, and no crash without."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.distributions import Bernoulli, Independent

from lightning_estimators.estimators import StochasticBackprop
from lightning_estimators.objectives import BernoulliLinear, compilation
from lightning_estimators.objectives.compilation import MIN_ELEMENTS, compile_choice, compiler_at_hand, is_compiled

from .brute_force import bits, one_hot


@pytest.fixture
def counter(monkeypatch):
    """Trace as the compiler does, and run what was traced; compiling it for real takes many seconds."""
    counter = CompileCounter()
    compiled = {}

    def compile_once(function):
        return compiled.setdefault(function, torch.compile(function, fullgraph=True, backend=counter))

    torch.compiler.reset()
    monkeypatch.setattr(compilation, "_compiled", compile_once)
    yield counter
    torch.compiler.reset()


def question(kind, batch, *, outputs=40, scale=1.0, bias_scale=1.0, dtype=torch.float64):
    event = (6, 3) if kind in ("one_hot", "vectors") else (12,)
    weight = scale * torch.randn(outputs, *event)
    target = torch.rand(outputs)
    f = BernoulliLinear(weight.to(dtype), bias_scale * torch.randn(outputs, dtype=dtype), target, len(event))
    if kind == "one_hot":
        z, z_new = one_hot(batch, *event)
    elif kind == "vectors":
        z, z_new = torch.randn(batch, *event), torch.randn(2, batch, *event)
    else:
        z = bits(batch, *event)
        z_new = 1 - z if kind == "flip" else torch.randn_like(z)
    return f, z.to(dtype), z_new.to(dtype)


KINDS = ["flip", "any", "one_hot", "vectors"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_is_eager_and_compiles_once_for_all_batches(kind, dtype, counter):
    for batch in (7, 5, 3):
        f, z, z_new = question(kind, batch, dtype=dtype)
        with compile_choice(False):
            expected = f.coordinate_change(z, z_new)
        with compile_choice(True):
            change = f.coordinate_change(z, z_new)
        assert change.dtype == dtype
        digits = 1e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(change, expected, rtol=0, atol=digits * expected.abs().mean().item())
    assert counter.frame_count == 1


@pytest.mark.parametrize("bias_scale", [1.0, 300.0])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 30.0])
@pytest.mark.parametrize("kind", KINDS)
def test_products_keep_their_digits_and_stay_finite(kind, scale, bias_scale, counter):
    f, z, z_new = question(kind, 4, outputs=20, scale=scale, bias_scale=bias_scale, dtype=torch.float32)
    exact = BernoulliLinear(f.weight.double(), f.bias.double(), f.target.double(), f.event_dim)
    with compile_choice(False):
        expected = exact.coordinate_change(z.double(), z_new.double())
    with compile_choice(True):
        error = f.coordinate_change(z, z_new).double() - expected
    assert error.abs().max() < 1e-4 * expected.abs().mean()


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_coordinates_make_the_whole(kind, counter):
    f, z, z_new = question(kind, 4)
    expected = f.coordinate_change(z, z_new)
    f.chunk_bytes = 1000
    with compile_choice(True):
        torch.testing.assert_close(f.coordinate_change(z, z_new), expected)
    assert counter.frame_count <= 2  # blocks of a single coordinate are a family of their own


def test_the_choice_depends_on_sizes_and_compiler(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(compilation, "compiler_at_hand", lambda kind: True)
    assert is_compiled(MIN_ELEMENTS, cpu)
    assert not is_compiled(MIN_ELEMENTS - 1, cpu)
    with compile_choice(True):
        assert is_compiled(1, cpu)
        with compile_choice(False):
            assert not is_compiled(MIN_ELEMENTS, cpu)
    monkeypatch.setattr(compilation, "compiler_at_hand", lambda kind: False)
    assert not is_compiled(MIN_ELEMENTS, cpu)


def test_the_estimator_passes_its_choice_on(counter):
    torch.manual_seed(0)
    logits = torch.zeros(4, 12, requires_grad=True)
    f, _, _ = question("flip", 4, dtype=torch.float32)
    gradients = []
    for choice in (False, True, None):
        torch.manual_seed(1)
        loss = StochasticBackprop(compile=choice)(Independent(Bernoulli(logits=logits), 1), f)
        gradients += torch.autograd.grad(loss.sum(), logits)
        assert counter.frame_count == (choice is not False)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(gradients[2], gradients[0])
    with pytest.raises(ValueError, match="compile must be"):
        StochasticBackprop(compile="yes")


def test_a_failure_is_told_once_and_the_run_goes_on(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no such compiler")

    monkeypatch.setattr(compilation, "_compiled", lambda function: broken)
    monkeypatch.setattr(compilation, "_failed", set())
    for kind in KINDS:
        f, z, z_new = question(kind, 4)
        expected = f.coordinate_change(z, z_new)
        with compile_choice(True), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.testing.assert_close(f.coordinate_change(z, z_new), expected)
        assert [str(w.message)[:20] for w in caught] == (["torch.compile failed"] if kind == "flip" else [])


ALONE = """
import warnings, torch
from lightning_estimators.objectives import BernoulliLinear
from lightning_estimators.objectives.compilation import compile_choice, compiler_at_hand
f = BernoulliLinear(torch.randn(784, 200), None, torch.rand(784))
z = torch.randint(0, 2, (30, 200)).float()
with compile_choice(False):
    expected = f.coordinate_change(z, 1 - z)
for choice in (None, True, True):
    with warnings.catch_warnings(record=True) as caught, compile_choice(choice):
        warnings.simplefilter("always")
        assert torch.equal(f.coordinate_change(z, 1 - z), expected)
    print(sum("torch.compile failed" in str(w.message) for w in caught))
assert not compiler_at_hand("cpu")
"""


@pytest.mark.parametrize("missing", ["compiler", "dynamo"])
def test_without_a_compiler(missing, tmp_path):
    """Silent where none was asked for, one warning where it was."""
    changed = {"CXX": "/nonexistent", "PATH": ""} if missing == "compiler" else {"TORCH_COMPILE_DISABLE": "1"}
    environment = {**os.environ, **changed, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    out = subprocess.run([sys.executable, "-c", ALONE], env=environment, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert out.stdout.split() == ["0", "1", "0"]


def test_other_releases_name_their_options_otherwise(monkeypatch):
    monkeypatch.setattr(compilation, "_OPTIONS", {"no_such_option": 1})
    compilation._compiled.cache_clear()
    assert callable(compilation._compiled(torch.neg))
    compilation._compiled.cache_clear()


MEMORY = """
import resource, torch
from lightning_estimators.objectives import BernoulliLinear
from lightning_estimators.objectives.compilation import compile_choice

def grown(event, moved):
    f = BernoulliLinear(torch.randn(1000, *event) * 0.1, None, torch.rand(1000), len(event))
    z, z_new = moved
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    f.coordinate_change(z, z_new)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

bits = torch.randint(0, 2, (100, 1500)).float()
classes = torch.eye(3)[torch.randint(0, 3, (100, 500))]
alternatives = torch.stack([classes.roll(k, -1) for k in (1, 2)])
with compile_choice(False):
    print(grown((1500,), (bits, 1 - bits)), grown((1500,), (bits, torch.randn_like(bits))),
          grown((500, 3), (classes, alternatives)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes on Linux only")
def test_memory_does_not_grow_with_the_number_of_coordinates():
    """100 points, 1500 coordinates and 1000 outputs would be 600 MB at once."""
    out = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert all(int(kilobytes) < 60_000 for kilobytes in out.stdout.split()), out.stdout


@pytest.mark.skipif(not compiler_at_hand("cpu"), reason="no C++ compiler")
def test_compiled_for_real():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    for batch in (6, 4):
        f, z, z_new = question("flip", batch, dtype=torch.float32)
        expected = f.coordinate_change(z, z_new)
        with compile_choice(True):
            change = f.coordinate_change(z, z_new)
        torch.testing.assert_close(change, expected, rtol=0, atol=1e-5 * expected.abs().mean().item())
    assert not compilation._failed
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_distributions_validate_their_arguments_after_compiling_as_before():
    program = """
import torch
from torch.distributions import Bernoulli
from lightning_estimators.objectives.compilation import _compiled
_compiled(torch.sin)
Bernoulli(logits=torch.tensor(torch.nan))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "ValueError: Expected parameter logits" in run.stderr
