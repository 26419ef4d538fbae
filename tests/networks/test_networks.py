import copy

import pytest
import torch

from lightning_estimators.networks import MLP, LatentMLP, Surrogate


@pytest.mark.parametrize("hidden", [[], [5], [6, 4]])
@pytest.mark.parametrize("event_shape", [(3,), (3, 4)])
def test_latent_mlp_reads_two_z_minus_one_and_its_first_layer_is_affine_in_z(hidden, event_shape):
    torch.manual_seed(0)
    network = LatentMLP(event_shape, hidden, 2).double()
    z = torch.rand(7, 5, *event_shape, dtype=torch.float64)
    expected = MLP.forward(network, 2 * z.flatten(2) - 1)
    torch.testing.assert_close(network(z), expected)
    weight, bias = network.affine()
    first = z.flatten(2) @ weight.flatten(1).T + bias
    torch.testing.assert_close(network.rest(first), expected)


def test_last_is_the_output_layer():
    for hidden in ([], [4, 3]):
        network = MLP(3, hidden, 2)
        with torch.no_grad():
            network.last.weight.zero_()
            network.last.bias.copy_(torch.tensor([1.0, 2.0]))
        assert network(torch.randn(1, 3)).tolist() == [[1.0, 2.0]]


def test_surrogate_takes_its_size_from_the_first_input():
    surrogate = Surrogate(hidden=[4])
    twin = copy.deepcopy(surrogate)
    assert surrogate(torch.zeros(2, 3)).shape == (2,)
    assert twin(torch.zeros(5, 2, 7)).shape == (5, 2)
    with pytest.raises(RuntimeError):
        surrogate(torch.zeros(2, 4))


def test_surrogate_signed_sees_two_x_minus_one():
    torch.manual_seed(0)
    signed = Surrogate(hidden=[4], activation="tanh", signed=True)
    x = torch.rand(6, 3)
    signed(x)
    plain = Surrogate(hidden=[4], activation="tanh")
    plain(x)
    plain.load_state_dict(signed.state_dict())
    torch.testing.assert_close(signed(x), plain(2 * x - 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(3, [0], 2), "every width"),
        (lambda: Surrogate(hidden=[]), "at least one hidden layer"),
        (lambda: Surrogate(activation="relux"), "expected an activation"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("signed", [False, True])
def test_a_context_of_a_surrogate_stands_behind_its_features(signed):
    torch.manual_seed(0)
    surrogate = Surrogate(hidden=[4], activation="tanh", signed=signed)
    x, context = torch.randn(2, 6, 3), torch.randn(6, 5)
    sizing = surrogate(x, context)
    joined = surrogate(torch.cat([x, context.expand(2, 6, 5)], -1))
    torch.testing.assert_close(surrogate(x, context), joined)
    assert torch.equal(sizing, joined)
