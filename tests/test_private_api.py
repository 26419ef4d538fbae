"""Each private access to another library still means what the package takes it for."""

from typing import Optional, Union

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers.logger import Logger
from torch.distributions import OneHotCategorical
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from lightning_estimators import private_api


class Recorder(Logger):
    name, version = "recorder", 0

    def __init__(self):
        super().__init__()
        self.steps = []

    def log_metrics(self, metrics, step=None):
        self.steps.append(step)

    def log_hyperparams(self, *args, **kwargs):
        pass


def test_the_step_of_loggers_can_be_set():
    class Shifted(BoringModel):
        def training_step(self, batch, batch_idx):
            private_api.set_logged_step(self.trainer, 40 + batch_idx)
            self.log("loss", 1.0)
            return super().training_step(batch, batch_idx)

    recorder = Recorder()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_steps=3, log_every_n_steps=1, logger=recorder, accelerator="cpu", **quiet)
    trainer.fit(Shifted(), BoringModel().train_dataloader())
    assert [step for step in recorder.steps if step and step >= 40] == [40, 41, 42], (
        "Lightning no longer places what is logged by FitLoop.epoch_loop._batches_that_stepped: find what it uses "
        "instead, and change private_api.set_logged_step"
    )


def test_a_one_hot_categorical_can_be_built_without_validation():
    logits = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.0, 0.0]])
    found, expected = private_api.unvalidated_one_hot_categorical(logits), OneHotCategorical(logits=logits)
    z = torch.eye(3)[[0, 2]]
    same = (
        found.batch_shape == expected.batch_shape
        and found.event_shape == expected.event_shape
        and torch.equal(found.log_prob(z), expected.log_prob(z))
        and torch.equal(found.mean, expected.mean)
        and torch.equal(found.logits, expected.logits)
        and torch.equal(found.entropy(), expected.entropy())
    )
    assert same, (
        "a OneHotCategorical is no longer a Categorical in the attribute _categorical, with a batch_shape and an "
        "event_shape: see what its constructor sets now, and change private_api.unvalidated_one_hot_categorical"
    )
    try:
        private_api.unvalidated_one_hot_categorical(torch.full((2,), torch.nan))
    except ValueError:
        pytest.fail("torch now validates the parameters in private_api.unvalidated_one_hot_categorical: find where")
    try:
        OneHotCategorical(logits=torch.full((2,), torch.nan), validate_args=False)
    except ValueError:
        return
    pytest.fail(
        "torch now honours OneHotCategorical(validate_args=False): "
        "use it, and delete private_api.unvalidated_one_hot_categorical"
    )


def test_probabilities_that_are_known_can_be_told_from_those_to_be_computed():
    logits, probs = torch.zeros(2, 3), torch.full((2, 3), 1 / 3)
    computed = private_api.unvalidated_one_hot_categorical(logits)
    before = "probs" in vars(private_api.categorical_of(computed))
    assert computed.probs.shape == logits.shape
    known = [private_api.categorical_of(q) for q in (computed, OneHotCategorical(probs))]
    found = (before, *("probs" in vars(q) for q in known))
    assert found == (False, True, True), (
        "OneHotCategorical no longer keeps its probabilities as `probs` in the dictionary of its _categorical: "
        "find where they are kept, and change private_api.categorical_of and distributions.probabilities"
    )


def test_one_compilation_serves_all_sizes_of_a_marked_axis():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    torch.compiler.reset()
    doubled = torch.compile(lambda x: 2 * x, backend=backend)
    for rows, columns in ((3, 4), (5, 4), (6, 4), (6, 7), (8, 9)):
        x = torch.ones(rows, columns)
        private_api.mark_compiled_sizes(x, dynamic=[0])
        doubled(x)
    torch.compiler.reset()
    assert len(compiled) == 3, (
        "torch._dynamo.mark_dynamic and mark_static no longer decide for which sizes torch.compile compiles anew "
        f"({len(compiled)} compilations, 3 expected): find what does, and change private_api.mark_compiled_sizes"
    )


def test_a_backward_pass_has_a_number():
    seen = [private_api.backward_number()]
    x = torch.ones(1, requires_grad=True)
    y = x * 2
    y.register_hook(lambda _: seen.append(private_api.backward_number()))
    y.sum().backward()
    assert (seen[0], seen[1] >= 0) == (-1, True), (
        "torch._C._current_graph_task_id no longer tells whether a backward pass is running: baselines need it to find "
        "forward passes that activation checkpointing repeats"
    )


def test_hooks_on_saved_tensors_are_seen():
    seen = [private_api.is_saving_hooked()]
    x = torch.ones(1, requires_grad=True)
    checkpoint(lambda a: seen.append(private_api.is_saving_hooked()) or a * 2, x, use_reentrant=False)
    assert seen == [False, True], (
        "the first pass of torch.utils.checkpoint no longer shows in the default hooks on saved tensors: baselines "
        "need to know of it"
    )


def test_the_forward_pass_of_data_parallel_is_seen():
    class Within(torch.nn.Module):
        def forward(self):
            return private_api.inside_data_parallel_forward()

    assert not Within()()
    wrapped = object.__new__(DistributedDataParallel)
    with wrapped._inside_ddp_forward():
        assert Within()(), "DistributedDataParallel no longer tells that its forward pass is running"
    assert not Within()()


def test_changes_in_place_are_counted():
    tensor = torch.zeros(2)
    before = private_api.version(tensor)
    tensor[0].mul_(2)
    assert private_api.version(tensor) > before, "tensors no longer count changes in place as `_version`"
    with torch.inference_mode():
        assert private_api.version(torch.zeros(1)) == 0


def test_whole_numbers_are_not_read_as_fractions():
    parser = ArgumentParser()
    parser.add_argument("--batches", type=Optional[Union[float, int]])  # noqa: UP007, UP045  the order is the point
    private_api.whole_numbers_first(parser)
    read = [parser.parse_args([f"--batches={text}"]).batches for text in ("1", "0.5", "null")]
    assert [(value, type(value)) for value in read] == [(1, int), (0.5, float), (None, type(None))], (
        "the types of jsonargparse's options are no longer in parser._actions[...]._typehint: find where they are, and "
        "change private_api.whole_numbers_first"
    )


def test_one_hot_variables_hold_an_index_and_know_what_they_were_given():
    index = torch.distributions.Categorical(logits=torch.zeros(2, 3))
    one_hot = private_api.one_hot_of(index)
    assert private_api.categorical_of(one_hot) is index, "OneHotCategorical no longer keeps `_categorical`"
    assert one_hot.sample().shape == (2, 3), "OneHotCategorical needs more than `_categorical` and its shapes"
    for family in (torch.distributions.Bernoulli, torch.distributions.OneHotCategorical):
        for name in ("probs", "logits"):
            q = family(**{name: torch.full((2, 3), 1 / 3)})
            for other in ("probs", "logits"):
                getattr(q, other)  # worked out and kept where it was not given
            expected = name == "probs"
            assert private_api.is_given_by_probs(q) is expected, "`_param` is no longer what was given"


def test_gamma_samples_move_with_their_shape_as_those_of_rsample_do():
    shape = torch.tensor([0.3, 1.0, 7.0], dtype=torch.float64, requires_grad=True)
    z = torch.distributions.Gamma(shape, torch.ones_like(shape)).rsample()
    (expected,) = torch.autograd.grad(z.sum(), shape)
    found = private_api.standard_gamma_derivative(shape.detach(), z.detach())
    words = "torch._standard_gamma_grad is no longer the derivative of gamma samples in their shape"
    assert torch.allclose(found, expected, rtol=1e-9), words
