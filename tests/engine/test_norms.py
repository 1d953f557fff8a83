"""Running averages of BatchNorm: what young ones hold, and that trained ones are left alone."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from detkit.backbones.efficientnet_lite import efficientnet_lite0
from detkit.engine.optim import begin_averages, learning_rates, norms_to_freeze
from detkit.engine.options import TrainOptions

BATCHES = [torch.full((4, 1, 2, 2), 3.0 + k) + torch.arange(16.0).reshape(4, 1, 2, 2) for k in range(20)]


def feed(layer, batches):
    for batch in batches:
        layer(batch)


def test_the_first_batches_make_a_plain_mean():
    layer = nn.BatchNorm2d(1, momentum=0.01)
    begin_averages(layer)
    feed(layer, BATCHES[:5])
    assert layer.running_mean.item() == 12.5
    torch.testing.assert_close(layer.running_var, BATCHES[0].var(unbiased=True)[None])


def test_after_enough_batches_the_layers_own_momentum_counts():
    layer = nn.BatchNorm2d(1, momentum=0.1)
    begin_averages(layer)
    feed(layer, BATCHES[:10])
    torch.testing.assert_close(layer.running_mean.item(), 15.0)
    layer(BATCHES[10])
    torch.testing.assert_close(layer.running_mean, torch.tensor([0.9 * 15.0 + 0.1 * BATCHES[10].mean()]))
    assert layer.momentum == 0.1
    assert not layer._forward_pre_hooks


def test_a_state_that_is_restored_half_way_goes_on_the_same():
    whole, part, rest = (nn.BatchNorm2d(1, momentum=0.01) for _ in range(3))
    begin_averages(whole)
    begin_averages(part)
    feed(whole, BATCHES[:20])
    feed(part, BATCHES[:7])
    rest.load_state_dict(part.state_dict())
    begin_averages(rest)
    feed(rest, BATCHES[7:20])
    assert torch.equal(whole.running_mean, rest.running_mean)
    assert torch.equal(whole.running_var, rest.running_var)


def test_passes_that_are_put_back_do_not_count():
    """Gradient accumulation looks at its batches beforehand."""
    layer, once = (nn.BatchNorm2d(1, momentum=0.1) for _ in range(2))
    begin_averages(layer)
    begin_averages(once)
    for batch in BATCHES[:15]:
        before = [buffer.clone() for buffer in layer.buffers()]
        with torch.no_grad():
            layer(batch)
            layer(batch)
        for buffer, value in zip(layer.buffers(), before, strict=True):
            buffer.copy_(value)
        layer(batch)
        once(batch)
    assert torch.equal(layer.running_mean, once.running_mean)
    assert torch.equal(layer.running_var, once.running_var)


def test_trained_averages_move_by_their_own_momentum():
    """With the count that training left, and without, as some weights are published."""
    for count in (0, 5000):
        layer = nn.BatchNorm2d(1, momentum=0.01)
        layer.running_mean.fill_(2.0)
        layer.num_batches_tracked.fill_(count)
        for _ in range(2):  # the second time as after a restored state
            begin_averages(layer)
            before = layer.running_mean.clone()
            layer(BATCHES[0])
            torch.testing.assert_close(layer.running_mean, 0.99 * before + 0.01 * BATCHES[0].mean())


def test_evaluation_does_not_count():
    layer = nn.BatchNorm2d(1, momentum=0.01)
    begin_averages(layer)
    layer(BATCHES[0])
    layer.eval()
    feed(layer, BATCHES[1:9])
    layer.train()
    layer(BATCHES[9])
    assert layer.running_mean.item() == (BATCHES[0].mean() + BATCHES[9].mean()).item() / 2


def test_a_deep_network_from_nothing_says_in_evaluation_what_it_says_in_training():
    """Twenty batches into a run; without the correction its last map is ten times too small."""
    torch.manual_seed(0)
    net = efficientnet_lite0(taps=[4])
    begin_averages(net)
    pixels = torch.randn(4, 3, 96, 96)
    with torch.no_grad():
        for _ in range(20):
            trained = net(torch.randn(4, 3, 96, 96))[0]
        answer = net.eval()(pixels)[0]
    assert 0.7 < (answer.std() / trained.std()).item() < 1.4


def test_norms_are_frozen_where_they_come_with_statistics():
    def frozen(images=16, weights="first.safetensors", **options):
        model.config = {"model": {"weights": weights}}
        return norms_to_freeze(model, TrainOptions(**options), images)

    model = nn.Sequential(nn.BatchNorm2d(1), nn.Sequential(nn.BatchNorm2d(1)), nn.BatchNorm2d(1))
    model[0](BATCHES[0])
    model[1][0].running_mean += 1  # published without the count
    trained = [model[0], model[1][0]]
    assert frozen() == trained
    assert frozen(images=32) == []
    assert frozen(weights="none") == []
    assert frozen(weights="none", freeze_norms=True) == trained
    assert frozen(freeze_norms=False) == []


def test_rates_by_where_training_starts():
    def rates(weights="first.safetensors", **options):
        return learning_rates(SimpleNamespace(config={"model": {"weights": weights}}), TrainOptions(**options))

    assert rates() == (1e-4, 1e-4)
    assert rates("none") == (2e-3, 4e-4)
    assert rates(optimizer="sgd") == (2e-3, 2e-3)
    assert rates(lr=0.01) == (0.01, 0.01)
    assert rates("none", lr=0.01) == (0.01, 4e-4)
    assert rates(lr=0.01, backbone_lr=0.002) == (0.01, 0.002)
    assert rates("none", backbone_lr=None) == (2e-3, 2e-3)
