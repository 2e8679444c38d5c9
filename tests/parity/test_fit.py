"""`fit` against a plain loop over `torch.optim.AdamW`: the same batches, the same losses."""

import torch
from bridges.training.fit import FitSettings, fit


def test_fit_equals_a_plain_loop() -> None:
    inputs, targets = torch.randn(50, 6), torch.randn(50, 1)
    settings = FitSettings(steps=20, lr=1e-2, batch=8, warmup=5, clip=0.5, weight_decay=0.1)

    def model() -> torch.nn.Module:
        torch.manual_seed(3)
        return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.GELU(), torch.nn.Linear(16, 1))

    fitted = model()
    losses = fit(
        fitted,
        lambda rows: torch.nn.functional.mse_loss(fitted(inputs[rows]), targets[rows]),
        len(inputs),
        settings,
        seed=5,
    ).losses

    plain = model()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1.0, weight_decay=0.1, fused=False, foreach=False)
    batches = torch.Generator().manual_seed(5)
    expected = []
    for step in range(20):
        rows = torch.randint(50, (8,), generator=batches)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * settings.rate(step)
        loss = torch.nn.functional.mse_loss(plain(inputs[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        expected.append(loss.item())
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    assert losses[-1] != losses[0]
