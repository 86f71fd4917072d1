"""The decoder is causal, deterministic, and the same function in training and inference."""

import math

import torch
from conftest import make_run_spec, make_shape

from jobs.model import build_model


def test_a_logit_does_not_see_the_future() -> None:
    model = build_model(make_run_spec())
    tokens = torch.randint(0, 61, (2, 16))
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 61
    assert torch.allclose(model.logits(tokens)[:, :9], model.logits(changed)[:, :9], atol=1e-6)
    assert not torch.allclose(model.logits(tokens)[:, 9:], model.logits(changed)[:, 9:], atol=1e-3)


def test_order_of_tokens_matters() -> None:
    model = build_model(make_run_spec(recipe={"init_std": 0.5}))
    tokens = torch.tensor([[5, 9, 7, 3]])
    swapped = torch.tensor([[9, 5, 7, 3]])
    assert not torch.allclose(model.logits(tokens)[0, -1], model.logits(swapped)[0, -1], atol=1e-4)


def test_initialisation_is_a_pure_function_of_the_seed_and_the_name() -> None:
    first, again = build_model(make_run_spec(seed=3)), build_model(make_run_spec(seed=3))
    other = build_model(make_run_spec(seed=4))
    deeper = build_model(make_run_spec(seed=3, shape=make_shape(num_layers=3), parametrization="mup"))
    for name, parameter in first.state_dict().items():
        assert torch.equal(parameter, again.state_dict()[name])
        assert torch.equal(parameter, deeper.state_dict()[name])
        if "norm" not in name:
            assert not torch.equal(parameter, other.state_dict()[name])


def test_loss_is_the_cross_entropy_of_the_logits_that_inference_sees() -> None:
    model = build_model(make_run_spec(shape=make_shape(width=32)))
    tokens = torch.randint(0, 61, (3, 17))
    loss = model(tokens[:, :-1], tokens[:, 1:])
    log_probability = model.logits(tokens[:, :-1]).log_softmax(-1)
    expected = -log_probability.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    assert loss.shape == (3, 16)
    assert torch.allclose(loss, expected, atol=1e-5)
    assert abs(loss.mean().item() - math.log(61)) < 0.2


def test_activation_checkpointing_changes_no_gradient() -> None:
    tokens = torch.randint(0, 61, (2, 17))
    gradients = []
    for checkpointing in (False, True):
        model = build_model(make_run_spec())
        model.activation_checkpointing = checkpointing
        model(tokens[:, :-1], tokens[:, 1:]).mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*gradients)
